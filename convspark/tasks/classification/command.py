"""`finetune`: from weights and labelled pictures to a classifier, measured.

The command line's `convspark finetune` is this function. Its module imports no torch, so that the command line can
describe it at once.
"""

from ...runs.run import carry_out
from ...runs.settings import command
from .settings import FinetuneResult, FinetuneSettings


@command(FinetuneSettings)
def finetune(settings: FinetuneSettings) -> FinetuneResult:
    """Fine-tune a network to classify your own labelled pictures, and measure it.

    Args:
        weights: run folder, export folder, timm name (resnet50.a1_in1k), .safetensors or .pth file, or random:MODEL.
        data: folder with a folder for each class, plain or under train/, val/ and test/; list of path,label[,split]; or
            tar or parquet files or a saved dataset with labels (docs/transfer.md).
        model: the network's name, for weights that do not name it: timm name, torchvision:NAME, package.module:factory.
        partial: go on where the weights leave most of the network, or a whole kind of its tensors, random.
        epochs: passes over the pictures; by default 300 for few pictures down to 30 for many.
        batch_size: pictures of an optimiser step; by default 64, fewer where there are few pictures.
        size: side of the images in pixels, or height x width; by default that of pre-training, else 224.
        fraction: share of each class's training labels to use.
        out: run folder to make; by default runs/finetune-MODEL-DATE-TIME.
        resume: run folder to go on with, from its last checkpoint; all settings are the run's own.
        optimizer: adamw with soft cross-entropy, or lamb with binary cross-entropy, the paper's for ResNets.
        learning_rate: peak learning rate; by default 1e-3 (lamb 8e-3) at a batch of 64, and with its square root.
        base_learning_rate: instead, the paper's linear rule: peak learning rate for each 256 pictures of a batch.
        warmup_epochs: epochs of linear warm-up; by default a tenth of them.
        weight_decay: for weights, not for norms and biases.
        layer_decay: factor of the learning rate from each layer group to the one before; by default 0.7, and 1 for
            random weights.
        group_blocks: how many blocks of each stage make a layer group, as 3,2,3,3, for timm's networks; by default
            stages are whole, but for the longest.
        gradient_clip: largest norm of a step's gradient, 0 for any; by default 5, and any with lamb.
        drop_path: stochastic depth rate.
        accumulate: forward passes that a step's batch is divided into; by default one, or as many as
            device_batch_size asks for.
        device_batch_size: the most pictures of a forward pass on each device.
        ema_decay: of the weights' moving average, which is measured, too; by default 0.9999, less for short runs.
        mixup: parameter of the mixing of two pictures; 0 for none.
        cutmix: parameter of the pasting of one into another; 0 for none.
        mix_share: share of the batches that are mixed; half of them by either way.
        smoothing: of the labels.
        policy: whether pictures are turned, sheared, recoloured and so on, by the policy of policy_kind.
        policy_kind: trivial is TrivialAugmentWide, auto is AutoAugment's policy v0 for ImageNet.
        interpolation: of the policy's turns and shears.
        erase: share of the pictures of which a rectangle is erased.
        crop_scale: smallest and largest share of a picture's area that is cropped out.
        repeats: crops of each picture in a batch; an epoch keeps its length, and shows so many times fewer pictures.
        eval_crop: share of the centre's side that is measured with; whole squeezes all of the picture into the size.
        val_share: share of the training pictures to validate with, where the data name none.
        seed: of everything random.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: processes on this machine, each with a device of its own, or all for one on each GPU. The run is the
            same for any number of them.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 where the device has instructions for it.
        workers: processes that load pictures; by default chosen by the cores there are.
        checkpoint_minutes: most minutes of work that a crash may cost.

    Raises:
        UsageError, DataError, DivergedError, KeyboardInterrupt: as `pretrain`.
    """
    from .train import Classification

    return carry_out(settings, Classification)
