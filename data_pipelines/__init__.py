"""Records to batches; the only place that imports TensorFlow."""

import os

# TensorFlow reads these once, when first imported. It runs no arithmetic here that oneDNN would speed up, and a notice
# about oneDNN on every start is not for our users.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # JAX has set it to 1 by now, so there is no telling whether a user did
