"""Every key of a run, with its default. A config is this plus the lines that differ."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults; a config must still choose a model, data and a method."""
    config = ConfigDict()
    config.name = ""  # what tables call the run; the config file's path if empty
    config.seed = 0  # of initialisation, the batches' order, augmentation and draws

    # A name of bitjax, or your own as "package.module:Name"; further keys go to the model.
    config.model = ConfigDict({"name": "", "num_classes": 10})
    config.init_from = ""  # float weights: a run folder, an Orbax checkpoint, .safetensors or .npz

    config.data = ConfigDict()
    # digits, cifar10, fashion_mnist, imagenet_sample, tfds:NAME, folder:PATH, npz:PATH, tokens:PATH
    # or text:PATH
    config.data.name = ""
    config.data.root = ""  # folder of local files; BITJAX_DATA if empty, for tfds: TFDS_DATA_DIR
    config.data.batch_size = 128
    config.data.eval_batch_size = 500
    config.data.augmentation = "none"  # shift, crop_flip: on the device; random_resized_crop
    config.data.image_size = 0  # of tfds: and folder: sets; their own, or 224 if it varies
    config.data.splits = ()  # of tfds: sets, train and test, e.g. ("train[:90%]", "train[90%:]")
    config.data.validation = 0  # training examples held out, the same ones every time
    config.data.eval_split = "test"  # test, or validation while choosing hyper-parameters
    config.data.eval_limit = 0  # evaluation examples, the first ones; 0: all
    config.data.context = 0  # tokens of an example of tokens: and text: sets; 0: 512
    config.data.train_context = 0  # tokens of a training example; 0: context
    config.data.marker = 1  # the token that begins a document of a tokens: set; -1: there is none
    config.data.form = ""  # documents or windows; documents if empty and there is a marker
    config.data.train_from = ""  # file of tokens to train on instead, drawn by a model, say
    config.data.mean = ()  # of value / max_value; the data set's own if empty
    config.data.std = ()

    # What is learned and measured: classification, next_token, or your own as "pkg.module:make";
    # what the data are for if empty. Further keys go to it.
    config.task = ConfigDict({"name": ""})
    config.method = ConfigDict({"name": ""})  # further keys go to the method
    config.rules = ()  # (pattern, {"name": quantizer, ...} or None), the first match decides
    config.sums = False  # whether the addends of residual sums are sites too, for rules to name
    config.budgets = ()  # {"metric": ..., "limit": ..., "sites": ...}, see bitjax.budget

    config.calibration_size = 512  # training images on which new ranges are fitted
    config.log_every = 10  # steps
    config.checkpoint_every = 100  # steps
    config.eval_every = 0  # steps; 0 evaluates at the end of a stage
    config.keep_checkpoints = 2  # the newest; an older one steps in for one that is damaged
    config.keep_best = False  # also the variables that evaluated best; init_from = "RUN@best"
    config.writers = ()  # of figures: tensorboard, wandb, mlflow, or your own "package.module:Name"
    config.tensorboard = False  # the same as "tensorboard" among the writers

    config.parallel = "auto"  # none, pmap or shard_map; auto is shard_map on several devices
    config.devices = 0  # over all hosts; 0 takes all
    config.accumulate = 1  # parts in which a device takes its share of a batch, to save memory
    config.steps_per_dispatch = 1  # steps that run as one program; accelerators only
    config.compute_dtype = "float32"  # or bfloat16: the model's; all else stays float32
    config.device_data_mb = 1024  # training images up to this size stay on an accelerator
    return config
