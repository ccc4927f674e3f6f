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
        model: the network's name, for weights that do not name it.
        partial: go on where the weights leave most of the network, or a whole kind of its tensors, random.
        epochs: passes over the pictures; by default such that 12,000 pictures are seen, 12 to 100.
        batch_size: pictures of a step.
        size: short side of the images in pixels; training varies it from 0.6 to 1.12 of that.
        steps: of the whole run, the same number in each epoch; by default an epoch shows every picture once.
        warmup_steps: steps of linear warm-up; by default a tenth of all.
        milestones: epochs, as 27,33, after which the learning rate is lowered; between them it stays. By default it
            falls along a cosine.
        milestone_factor: what it is multiplied by at each of them.
        accumulate: forward passes that a step's batch is divided into; by default one, or as many as
            device_batch_size asks for.
        device_batch_size: the most pictures of a forward pass on each device.
        short_sides: the least and the most that the short side has in training, in steps of 32 pixels; by default 0.6
            to 1.12 of the size, in six steps.
        heads: plain, or norm: batch norms in the pyramid and the heads, four convolutions in the boxes' head.
        fit_to_objects: make anchors smaller where objects are, and find as many of a picture as there are; else as for
            COCO.
        out: run folder to make; by default runs/detect-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings are the run's own.
        learning_rate: peak learning rate; by default the paper's 2.5e-4 at a batch of 16, by its square root, and up to
            four times that in fewer than the paper's 90,000 steps.
        weight_decay: of AdamW.
        layer_decay: factor of the learning rate from each layer group to the one before; by default 0.65, and 1 for
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
        precision: auto is bf16 on GPUs that are fast at it.
        workers: processes that load pictures; by default chosen by the cores there are.
        checkpoint_minutes: most minutes of work that a crash may cost.
    """
    from .train import Detection

    return carry_out(settings, Detection)
