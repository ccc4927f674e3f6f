"""Draws images/plan.png: a patch, the block of patches around it, and the window that a 3x3 convolution needs.

python docs/drawing/plan.py
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convspark import PatchGrid
from convspark.sparse.plans import Plan, seen_by_cell

VISIBLE = torch.tensor([[[0, 1, 1, 0], [1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]]]).bool()
PATCH, CHOSEN = 4, 3  # positions a side; the patch in row 1, column 1
SHOWN, MASKED, OURS, HALO = "#9ecae1", "#f0f0f0", "#3182bd", "#e6550d"


def main() -> None:
    grid = PatchGrid(VISIBLE)
    plan = Plan((PATCH, PATCH), (3, 3), (1, 1), (1, 1), (1, 1)).window
    around = grid.around(plan.reach).slots[CHOSEN].tolist()
    cells = seen_by_cell(plan, grid.device)[:, 0].tolist()
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    axes = figure.subplots(1, 3)
    _map(axes[0], grid)
    _block(axes[1], around, grid.num_visible, cells)
    _window(axes[2], around, grid.num_visible, cells)
    figure.savefig(Path(__file__).parents[1] / "images" / "plan.png", dpi=110, bbox_inches="tight")


def _map(ax, grid) -> None:
    slots = grid.slots.view(grid.shape).tolist()
    for y, row in enumerate(slots):
        for x, slot in enumerate(row):
            masked = slot == grid.num_visible
            ax.add_patch(
                Rectangle((x, y), 1, 1, fc=MASKED if masked else OURS if slot == CHOSEN else SHOWN, ec="white", lw=2)
            )
            ax.text(x + 0.5, y + 0.5, "masked" if masked else slot, ha="center", va="center", fontsize=9)
    ax.add_patch(Rectangle((0, 0), 3, 3, fill=False, ec=HALO, lw=2.5))
    _finish(ax, 4, "An image: visible patches, numbered (slots)\nand the block around patch 3")


def _block(ax, around, count, cells) -> None:
    for number, slot in enumerate(around):
        y, x = divmod(number, 3)
        masked = slot >= count
        ax.add_patch(
            Rectangle((x, y), 1, 1, fc=MASKED if masked else OURS if slot == CHOSEN else SHOWN, ec="white", lw=2)
        )
        ax.text(x + 0.5, y + 0.42, f"block {number}", ha="center", va="center", fontsize=8)
        ax.text(x + 0.5, y + 0.62, "masked" if masked else f"slot {slot}", ha="center", va="center", fontsize=9)
    for number, position in cells:
        y, x = divmod(number, 3)
        row, column = divmod(position, PATCH)
        if number != 4:
            corner = x + column / PATCH, y + row / PATCH
            ax.add_patch(Rectangle(corner, 1 / PATCH, 1 / PATCH, fc="none", ec=HALO, lw=1))
    _finish(
        ax, 3, "grid.around: the block, for every layer the same;\norange: what a 3x3 kernel needs of it (the plan)"
    )


def _window(ax, around, count, cells) -> None:
    side = PATCH + 2
    for cell, (number, position) in enumerate(cells):
        y, x = divmod(cell, side)
        slot = around[number]
        masked = slot >= count
        color = MASKED if masked else OURS if slot == CHOSEN else SHOWN
        ax.add_patch(Rectangle((x, y), 1, 1, fc=color, ec="white"))
        ax.text(x + 0.5, y + 0.5, "0" if masked else f"{number}, {position}", ha="center", va="center", fontsize=7)
    _finish(ax, side, "The window, cell by cell: patch of the block,\nposition in it; masked cells are 0")


def _finish(ax, side: int, title: str) -> None:
    ax.set(xlim=(-0.05, side + 0.05), ylim=(side + 0.05, -0.05), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)
    for spine in ax.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    main()
