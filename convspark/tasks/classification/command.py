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
        weights: run folder, export folder, timm name (resnet50.a1_in1k), .safetensors, .pth or .ckpt file, or
            random:MODEL.
        data: folder with a folder for each class, plain or under train/, val/ and test/; CSV list of
            path,label[,split]; or tar files, parquet files or a saved dataset with labels (docs/transfer.md).
        model: the network's name, if the weights do not name it: timm name, torchvision:NAME, package.module:factory.
        partial: go on even if the weights leave most of the network, or all tensors of one kind, random.
        epochs: passes over the pictures; by default from 300 for few pictures to 30 for many.
        batch_size: pictures of an optimiser step; by default 64, or fewer if there are few pictures.
        size: side of the images in pixels, or height x width; by default that of pre-training, else 224.
        fraction: share of each class's training labels to use.
        out: run folder to make; by default runs/finetune-MODEL-DATE-TIME.
        resume: run folder to go on with, from its last checkpoint; all settings stay those of the run.
        optimizer: adamw with soft cross-entropy, or lamb with binary cross-entropy (the paper's for ResNets).
        learning_rate: peak learning rate; by default 1e-3 (lamb 8e-3) at a batch of 64, scaled by the square root of
            the batch.
        base_learning_rate: peak learning rate for each 256 pictures of a batch (the paper's linear rule), instead of
            learning_rate.
        warmup_epochs: epochs of linear warm-up; by default a tenth of them.
        weight_decay: weight decay of weights; norms and biases have none.
        layer_decay: each layer group has the learning rate of the next deeper one times this factor; by default 0.7,
            and 1 for random weights.
        group_blocks: how many blocks of each stage make a layer group, as 3,2,3,3, for timm's networks; by default each
            stage is one group, and the longest stages are divided.
        gradient_clip: largest norm of a step's gradient, 0 for no limit; by default 5, with lamb no limit.
        drop_path: stochastic depth rate.
        accumulate: number of forward passes into which a step's batch is divided; by default one, or as many as
            device_batch_size needs.
        device_batch_size: largest number of pictures in a forward pass on each device, if accumulate is left out.
        ema_decay: decay of the moving average of the weights, which is also measured; by default 0.9999, less for short
            runs.
        mixup: mixup parameter (two pictures are blended); 0 for none.
        cutmix: CutMix parameter (a part of one picture is pasted into another); 0 for none.
        mix_share: share of the batches that are mixed, half of them by mixup and half by CutMix.
        smoothing: label smoothing.
        policy: whether pictures are turned, sheared, recoloured and so on, by the policy of policy_kind.
        policy_kind: trivial is TrivialAugmentWide, auto is AutoAugment's policy v0 for ImageNet.
        interpolation: how the policy interpolates when it turns and shears.
        erase: share of the pictures in which a rectangle is erased.
        crop_scale: smallest and largest share of a picture's area that a crop has.
        repeats: crops of each picture in a batch; an epoch keeps its number of steps, and so shows fewer pictures.
        eval_crop: to measure, a picture is cut to this share of its shorter side, at its centre; whole squeezes the
            whole picture into the size.
        val_share: share of the training pictures to validate with, if the data have no val.
        seed: seed of all random numbers.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: number of processes on this machine, each with a device of its own; all starts one for each GPU. The
            run is the same for any number.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 if the device has instructions for it, else fp32.
        workers: processes that load pictures; by default chosen by the number of cores.
        checkpoint_minutes: minutes between checkpoints: the most work that a crash may cost.

    Raises:
        UsageError, DataError, DivergedError, KeyboardInterrupt: as `pretrain`.
    """
    from .train import Classification

    return carry_out(settings, Classification)
