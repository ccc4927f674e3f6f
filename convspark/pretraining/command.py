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
            files that hold them, as data/{000..127}.tar or a folder of them; a dataset that Hugging Face's datasets
            saved; each also at a URL (s3://, gs://, hf://, https://). In Python also a list of paths or a map-style
            Dataset of images.
        model: timm name (resnet50), torchvision:NAME, or package.module:factory for your own; in Python also any
            nn.Module. auto is that of `init`, or else chosen by the images and the machine, see docs/choices.md; so are
            epochs, batch size and size where they are not given; the log says what is chosen.
        epochs: passes over the images; by default as many as suit their number and end within about ten hours.
        batch_size: images of an optimiser step; by default 64 or, of many images on a GPU, 256.
        size: side of the images in pixels, or height x width as in 192x256; divisible by the patch. auto is at most
            224, without a GPU 128, and no more than the pictures have.
        mask_ratio: share of the patches that is masked.
        masks: how they are drawn: random, each patch by itself; blocks, rectangles of them; a .npy file of masks (K, h,
            w), nonzero where visible; or package.module:function, see docs/ablation.md.
        init: start from these weights: a run, an export, a .safetensors or .pth file, or a timm name such as
            resnet50.a1_in1k. Advised where images are few.
        partial: go on where `init` leaves most of the network, or a whole kind of its tensors, random.
        out: run folder to make; by default runs/MODEL-DATE-TIME.
        resume: run folder to go on with, from its last checkpoint; all settings are the run's own.
        model_args: further arguments for building the network, such as {output_stride: 16} for timm's on small images.
        channels: channels of the images: 3 for colour, 1 for grey; others for TIFF and NumPy arrays of as many bands.
        patch_size: side of the masked patches in pixels, or height,width; by default the network's total stride. A
            multiple of it masks more coarsely, a finer one trains only the stages whose stride divides it.
        stages: names of the network's modules to decode, finest first; by default they are found.
        decoder: lean, or paper: the paper's own, of the same kind at eight times the cost, for runs to compare with it.
        decoder_width: channels of the decoder's first block; by default the deepest stage's, at most 768.
        encoding: sparse computes visible patches only; zero is the dense network on pictures with masked patches at 0.
        levels: how many stages are decoded, the deepest ones; by default all, at most 4. 1 is a decoder without skips.
        mask_token: at masked positions of a decoded map: a learned vector, or zero.
        target: pixels normalised by their patch's mean and deviation, or raw.
        loss_on: masked patches, or all.
        densify_norm: norm in front of the decoder; auto is layer for networks with LayerNorm.
        drop_path: stochastic depth rate; by default the paper's for the networks it trained, else 0.
        optimizer: lamb is the paper's.
        learning_rate: peak learning rate; by default 3.2e-3, and more for runs of less than 4,000 steps.
        base_learning_rate: instead, the paper's linear rule: peak learning rate for each 256 images of a batch.
        warmup_epochs: epochs of linear warm-up, fractions allowed; by default a tenth of them, at most 40.
        weight_decay: at the first step.
        final_weight_decay: at the last step.
        betas: of the optimiser; by default 0.9 and 0.95, with LayerNorm 0.9 and 0.999, as in the paper.
        gradient_clip: largest norm of the gradient of a step.
        accumulate: forward passes that a step's batch is divided into, to fit it into memory; by default one, or as
            many as device_batch_size asks for.
        device_batch_size: the most images of a forward pass on each device.
        held_out: share of the images held out to measure a loss that is not trained on, or a folder of such images.
        held_out_most: the most images that share comes to.
        check: of the images at the start: quick looks at the header and the end of each file, full decodes all of them,
            none takes what is there. Unchanged files are not looked at again.
        shuffle: full lets any image follow any other; windows keeps together those that lie in the same part of a file,
            which disks without random access and large parquet files read far quicker.
        crop_scale: smallest and largest share of a picture's area that is cropped out.
        flip: mirror half of the crops.
        crops_per_image: crops made of each picture in an epoch; more than 1 pays for few, large photographs.
        bands: which bands of a file are the channels, counted from 1, in this order; by default all.
        band_axis: first or last axis of arrays that do not say which one the bands are.
        stats: auto measures low, high, mean and std over up to 500 files, where they are not given.
        low: value of each channel that counts as 0, in the files' own units; what is below is cut off. One number is
            for all channels. By default samples of more than 8 bits are shares of their type's largest value, or, of 3
            channels or 1, stretched picture by picture.
        high: value of each channel that counts as 1; what is above is cut off.
        mean: of each channel, from 0 to 1; by default ImageNet's.
        std: deviation of each channel; by default ImageNet's.
        seed: of everything random; the same seed gives the same run.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: processes on this machine, each with a device of its own, or all for one on each GPU. The run is the
            same for any number of them.
        nodes: machines that carry out the run together; see docs/scaling.md.
        precision: auto is bf16 where the device has instructions for it.
        workers: processes that load images; by default chosen by the cores there are.
        compile: run the steps through torch.compile: the first one takes minutes, and a C++ compiler must be there.
        cuda_graph: on a GPU, record a step once and replay it, where nothing in the network speaks against it: the same
            step, sooner. On trial: quicker where it was measured, and not yet compared with steps as they are.
        probe: labelled folder or CSV, as `convspark probe` takes it, to measure every few epochs how well the
            features separate its classes. Nothing is trained on it.
        watch_epochs: epochs between looks at the features, 0 for none; by default fifty a run, fewer where they would
            take more than a few per cent of its time.
        picture_epochs: epochs between reconstruction pictures, 0 for none; by default ten pictures a run.
        show: three channels, or one, to draw pictures of, counted from 1; by default the first three.
        checkpoint_minutes: most minutes of work that a crash may cost.
        keep_epochs: also keep a checkpoint for good every so many epochs.
        tracker: also send figures and pictures to TensorBoard or Weights & Biases.

    Raises:
        UsageError: an argument that cannot be used.
        DataError: images that cannot.
        DivergedError: the loss is no longer a number; the last checkpoint is kept.
        KeyboardInterrupt: by Ctrl-C, after the step it came in, with a checkpoint written.
    """
    from .train import Pretraining

    return carry_out(settings, Pretraining)
