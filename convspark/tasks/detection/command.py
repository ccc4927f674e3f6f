"""`detect`: from weights and annotated pictures to a detector, measured by COCO's average precision."""

from ...runs.run import carry_out
from ...runs.settings import command
from .settings import DetectResult, DetectSettings


@command(DetectSettings)
def detect(settings: DetectSettings) -> DetectResult:
    """Train a detector (Faster R-CNN or Mask R-CNN with a feature pyramid) on annotated pictures, and measure it.

    Args:
        weights: run folder, export folder, timm name, .safetensors, .pth or .ckpt file, or random:MODEL.
        train: COCO .json file, folder of Pascal VOC .xml files, or .txt list of them from VOC's ImageSets.
        val: the same for the pictures to measure with.
        images: folder of the pictures.
        val_images: folder of the pictures to measure with, if it is another one.
        task: boxes, or also masks (instance segmentation).
        model: the network's name, if the weights do not name it.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        epochs: passes over the pictures; by default so many that 12,000 pictures are seen, from 12 to 100.
        batch_size: pictures of a step.
        size: short side of the images in pixels; training varies it from 0.6 to 1.12 times this.
        steps: steps of the whole run, the same number in each epoch; by default an epoch shows every picture once.
        warmup_steps: steps of linear warm-up; by default a tenth of all.
        milestones: epochs, as 27,33, after which the learning rate is lowered; between them it is constant. By default
            it falls along a cosine.
        milestone_factor: factor of the learning rate at each milestone.
        accumulate: number of forward passes into which a step's batch is divided; by default one, or as many as
            device_batch_size needs.
        device_batch_size: largest number of pictures in a forward pass on each device, if accumulate is left out.
        short_sides: smallest and largest short side in training, in steps of 32 pixels; by default 0.6 to 1.12 times
            the size, in six steps.
        heads: plain, or norm: batch norms in the pyramid and the heads, and four convolutions in the head of the boxes.
        fit_to_objects: make anchors smaller if the objects are small, and detect as many objects as pictures have; else
            as for COCO.
        out: run folder to make; by default runs/detect-MODEL-DATE-TIME.
        resume: run folder to go on with; all settings stay those of the run.
        learning_rate: peak learning rate; by default the paper's 2.5e-4 at a batch of 16, scaled by the square root of
            the batch, and up to four times that if there are fewer than the paper's 90,000 steps.
        weight_decay: weight decay of AdamW.
        layer_decay: each layer group has the learning rate of the next deeper one times this factor; by default 0.65,
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
        precision: auto is bf16 on GPUs that are fast at it.
        workers: processes that load pictures; by default chosen by the number of cores.
        checkpoint_minutes: minutes between checkpoints: the most work that a crash may cost.
    """
    from .train import Detection

    return carry_out(settings, Detection)
