"""`segment`: from weights and pictures with a class at every pixel to a segmenter, measured."""

from ...runs.run import carry_out
from ...runs.settings import command
from .settings import SegmentResult, SegmentSettings


@command(SegmentSettings)
def segment(settings: SegmentSettings) -> SegmentResult:
    """Train a network to tell the class of every pixel, and measure it by IoU and Dice.

    Args:
        weights: run folder, export folder, timm name, .safetensors, .pth or .ckpt file, or random:MODEL.
        images: folder of pictures; or tar files, parquet files or a saved dataset of pictures and masks.
        masks: folder of 8-bit mask files named like the pictures (0 and 255, or 0, 1, 2, … with 255 for pixels that do
            not count); or a COCO .json file. Leave it out if the masks are in the same files as the pictures:
            X.mask.png beside X.jpg in a tar, or a column mask, annotation or label in a table.
        val_images: pictures to measure with; by default the val part of images, or else a share of them.
        val_masks: the masks of val_images.
        val_share: share of the pictures to measure with, if there is no val.
        model: the network's name, if the weights do not name it.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        epochs: passes over the pictures; by default so many that 12,000 pictures are seen, from 20 to 200.
        batch_size: pictures of a step; by default 8, or fewer if there are fewer pictures.
        size: side of the crops that are trained on, in pixels; whole pictures are measured.
        out: run folder to make; by default runs/segment-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings stay those of the run.
        learning_rate: peak learning rate; by default 5e-4 at a batch of 16, scaled by the square root of the batch.
        weight_decay: weight decay of AdamW.
        layer_decay: each layer group has the learning rate of the next deeper one times this factor; by default 0.7,
            and 1 for random weights.
        group_blocks: how many blocks of each stage make a layer group, as 3,2,3,3, for timm's networks; by default each
            stage is one group, and the longest stages are divided.
        gradient_clip: largest norm of a step's gradient, 0 for no limit; by default 5.
        drop_path: stochastic depth rate.
        seed: seed of all random numbers.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: number of processes on this machine, each with a device of its own; all starts one for each GPU. The
            run is the same for any number.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 if the device has instructions for it, else fp32.
        workers: processes that load pictures; by default chosen by the number of cores.
        checkpoint_minutes: minutes between checkpoints: the most work that a crash may cost.
    """
    from .train import Segmentation

    return carry_out(settings, Segmentation)
