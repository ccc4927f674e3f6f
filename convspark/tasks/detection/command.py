"""`detect`: from weights and annotated pictures to a detector, measured by COCO's average precision."""

from ...runs.run import carry_out
from ...runs.settings import command
from .settings import DetectResult, DetectSettings


@command(DetectSettings)
def detect(settings: DetectSettings) -> DetectResult:
    """Train a detector (Faster R-CNN or Mask R-CNN with a feature pyramid) on annotated pictures, and measure it.

    Args:
        weights: run folder, export folder, timm name, .safetensors or .pth file, or random:MODEL.
        train: COCO .json file; folder of Pascal VOC .xml files, or .txt list of them in VOC's ImageSets.
        val: the same, of pictures to measure with.
        images: folder of the pictures.
        val_images: folder of the pictures to measure with, where it is another one.
        task: boxes, or masks too (instance segmentation).
        model: the network's name, for weights that do not tell it.
        partial: go on where the weights leave most of the network, or a whole kind of its tensors, random.
        epochs: passes over the pictures; by default such that 12,000 pictures are seen, 12 to 100.
        batch_size: pictures of a step.
        size: short side of the images in pixels; training varies it from 0.6 to 1.12 of that.
        out: run folder to make; by default runs/detect-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings are the run's own.
        learning_rate: peak learning rate; by default the paper's 2.5e-4 at a batch of 16, by its square root, and up to
            four times that in fewer than the paper's 90,000 steps.
        weight_decay: of AdamW.
        layer_decay: factor of the learning rate from each layer group to the one before; by default 0.65, and 1 for
            random weights.
        drop_path: stochastic depth rate.
        seed: of everything random.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: processes on this machine, each with a device of its own, or all for one on each GPU. The run is the
            same for any number of them.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 on GPUs that are fast at it.
        workers: processes that load pictures; by default chosen by the cores there are.
        checkpoint_minutes: most minutes of work that a crash may cost.
    """
    from .train import Detection

    return carry_out(settings, Detection)
