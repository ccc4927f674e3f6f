"""`segment`: from weights and pictures with a class at every pixel to a segmenter, measured."""

from ...runs.run import carry_out
from ...runs.settings import command
from .settings import SegmentResult, SegmentSettings


@command(SegmentSettings)
def segment(settings: SegmentSettings) -> SegmentResult:
    """Train a network to name the class of every pixel, and measure it by IoU and Dice.

    Args:
        weights: run folder, export folder, timm name, .safetensors or .pth file, or random:MODEL.
        images: folder of pictures; or tar files, parquet files or a saved dataset of pictures and masks.
        masks: folder of 8-bit mask files named like the pictures (0 and 255, or 0, 1, 2, … with 255 for pixels that do
            not count); or a COCO .json file. None where they lie beside the pictures: X.mask.png beside X.jpg in a tar,
            a column mask, annotation or label in a table.
        val_images: pictures to measure with; by default those that images calls so, else a share of them.
        val_masks: their masks.
        val_share: that share.
        model: the network's name, for weights that do not name it.
        partial: go on where the weights leave most of the network, or a whole kind of its tensors, random.
        epochs: passes over the pictures; by default such that 12,000 pictures are seen, 20 to 200.
        batch_size: pictures of a step; by default 8, or fewer where there are fewer.
        size: side of the crops that are trained on, in pixels; whole pictures are measured.
        out: run folder to make; by default runs/segment-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings are the run's own.
        learning_rate: peak learning rate; by default 5e-4 at a batch of 16, and with its square root.
        weight_decay: of AdamW.
        layer_decay: factor of the learning rate from each layer group to the one before; by default 0.7, and 1 for
            random weights.
        group_blocks: how many blocks of each stage make a layer group, as 3,2,3,3, for timm's networks; by default
            stages are whole, but for the longest.
        gradient_clip: largest norm of a step's gradient, 0 for any; by default 5.
        drop_path: stochastic depth rate.
        seed: of everything random.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: processes on this machine, each with a device of its own, or all for one on each GPU. The run is the
            same for any number of them.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 where the device has instructions for it.
        workers: processes that load pictures; by default chosen by the cores there are.
        checkpoint_minutes: most minutes of work that a crash may cost.
    """
    from .train import Segmentation

    return carry_out(settings, Segmentation)
