"""`pretrain`: from a folder of images to a pre-trained backbone that timm loads.

The command line's `convspark pretrain` is this function. Its module imports no torch, so that the command line can
describe it at once.
"""

from ..runs.run import carry_out
from ..runs.settings import command
from .settings import PretrainResult, PretrainSettings


@command(PretrainSettings)
def pretrain(settings: PretrainSettings) -> PretrainResult:
    """Pre-train a convolutional network on unlabelled images, and export it for timm.

    Args:
        images: folder of pictures (flat or nested, labelled or not); text, CSV or parquet list of paths; tar or parquet
            files of pictures, as data/{000..127}.tar, or a folder of them; a dataset saved by Hugging Face's datasets.
            All of these may be at a URL (s3://, gs://, hf://, https://). In Python also a list of paths or a map-style
            Dataset of images.
        model: timm name (resnet50), torchvision:NAME, or package.module:factory for your own; in Python also any
            nn.Module. auto is the network of `init`; without `init`, it is chosen to suit the images and the machine.
            Epochs, batch size and size are chosen in the same way if you do not set them; the log says what is chosen,
            see docs/choices.md.
        epochs: passes over the images; by default as many as suit the number of images and end within about ten hours.
        batch_size: images of an optimiser step; by default 64, or 256 for many images on a GPU.
        size: side of the images in pixels, or height x width as in 192x256; divisible by the patch size. auto is at
            most 224 (without a GPU 128), and not larger than most of the pictures.
        mask_ratio: share of the patches that is masked.
        masks: how masks are drawn: random (patches one by one); blocks (rectangles of patches); a .npy file of K masks
            (K, h, w), nonzero where visible; or package.module:function, see docs/ablation.md.
        init: start from these weights: a run, an export, a .safetensors, .pth or .ckpt file, or a timm name such as
            resnet50.a1_in1k. Recommended if there are few images.
        partial: go on even if `init` leaves most of the network, or all tensors of one kind, random.
        out: run folder to make; by default runs/MODEL-DATE-TIME.
        resume: run folder to go on with, from its last checkpoint; all settings stay those of the run.
        model_args: further arguments for building the network, such as {output_stride: 16} for timm's networks on small
            images.
        channels: channels of the images: 3 for colour, 1 for grey; other numbers for TIFF and NumPy arrays of as many
            bands.
        patch_size: side of the masked patches in pixels, or height,width; by default the network's total stride. It may
            be a multiple of that (a coarser mask), or finer: then only the stages whose stride divides it are trained.
        stages: names of the network's modules to decode, finest first; by default they are found automatically.
        decoder: lean, or paper: the paper's own, which costs eight times as much, for runs to compare with the paper's.
        decoder_width: channels of the decoder's first block; by default the deepest stage's, at most 768.
        encoding: sparse computes visible patches only; zero runs the dense network on pictures with masked patches set
            to 0.
        levels: how many stages are decoded, counted from the deepest; by default all, at most 4. With 1 the decoder has
            no skips.
        mask_token: what is put at masked positions of a decoded map: a learned vector, or zero.
        target: what is predicted: pixels normalised by their patch's mean and deviation, or raw pixels.
        loss_on: count the loss on masked patches, or on all.
        densify_norm: norm in front of the decoder; auto is layer for networks with LayerNorm, else batch.
        drop_path: stochastic depth rate; by default drop_path_rate of `model_args`, or the paper's for the networks it
            trained, else 0.
        optimizer: lamb (the paper's) or adamw.
        learning_rate: peak learning rate; by default 3.2e-3, and more for runs of less than 4,000 steps.
        base_learning_rate: peak learning rate for each 256 images of a batch (the paper's linear rule), instead of
            learning_rate.
        warmup_epochs: epochs of linear warm-up, fractions allowed; by default a tenth of the epochs, at most 40.
        weight_decay: weight decay at the first step.
        final_weight_decay: weight decay at the last step.
        betas: betas of the optimiser; by default 0.9 and 0.95, for networks with LayerNorm 0.9 and 0.999, as in the
            paper.
        gradient_clip: largest norm of the gradient of a step; larger ones are cut to it.
        accumulate: number of forward passes into which a step's batch is divided, to fit it into memory; by default
            one, or as many as device_batch_size needs.
        device_batch_size: largest number of images in a forward pass on each device, if accumulate is left out.
        held_out: share of the images that is not trained on, to measure a loss with; or a folder of such images.
        held_out_most: largest number of images that this share may be.
        check: how images are checked at the start: quick reads the header and the end of each file, full decodes all,
            none checks nothing. Files that have not changed are not checked again.
        shuffle: full lets any image follow any other; windows keeps images from the same part of a file together, which
            is far quicker on disks without random access and with large parquet files.
        shards_per_epoch: largest number of tar or parquet files that an epoch has; the next epoch has others, until all
            were shown. For more pictures than fit into memory as a list: only those of an epoch are listed, and none is
            checked before.
        crop_scale: smallest and largest share of a picture's area that a crop has.
        flip: mirror half of the crops.
        crops_per_image: crops made of each picture in an epoch; more than 1 helps with few, large photographs.
        decode: who decodes JPEGs: the workers, or the device, an NVIDIA GPU, for machines whose cores cannot keep up
            with it. The same crops, whose values differ a little; not yet tried on a GPU.
        bands: which bands of a file are the channels, counted from 1, in this order; by default all.
        band_axis: which axis of an array holds the bands, first or last, for arrays where this is not clear.
        stats: auto measures those of low, high, mean and std that are not set, over up to 500 files.
        low: value of each channel that counts as 0, in the files' own units; values below are cut off. One number is
            used for all channels. By default samples of more than 8 bits are divided by their type's largest value or,
            if there are 3 channels or 1, stretched, each picture by itself.
        high: value of each channel that counts as 1; values above are cut off.
        mean: mean of each channel, from 0 to 1; by default ImageNet's.
        std: deviation of each channel; by default ImageNet's.
        seed: seed of all random numbers; the same seed gives the same run.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: number of processes on this machine, each with a device of its own; all starts one for each GPU. The
            run is the same for any number.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 if the device has instructions for it, else fp32.
        workers: processes that load images; by default chosen by the number of cores.
        compile: run the steps through torch.compile. The first one takes minutes, and a C++ compiler is needed.
        cuda_graph: record a step once and replay it, if the network allows it: the same numbers, several times as fast
            as steps that Python launches. By default on a single GPU; with several it has not been tried. Steps that
            are compiled are not recorded.
        probe: labelled pictures, in any form that `convspark probe` takes: every few epochs it is measured how well the
            features separate its classes. The network is not trained on it.
        watch_epochs: epochs between measurements of the features, 0 for none; by default fifty measurements a run, or
            fewer if they would take more than a few per cent of its time.
        picture_epochs: epochs between reconstruction pictures, 0 for none; by default ten pictures a run.
        show: three channels, or one, to show in pictures, counted from 1; by default the first three.
        checkpoint_minutes: minutes between checkpoints: the most work that a crash may cost.
        keep_epochs: keep a checkpoint for good every so many epochs, besides the last ones.
        tracker: also send figures and pictures to TensorBoard or Weights & Biases.

    Raises:
        UsageError: an argument that cannot be used.
        DataError: images that cannot be used.
        DivergedError: the loss is no longer a number; the last checkpoint is kept.
        KeyboardInterrupt: by Ctrl-C, after the current step, with a checkpoint written.
    """
    from .train import Pretraining

    return carry_out(settings, Pretraining)
