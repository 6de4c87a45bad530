"""Records to batches; the only place that imports TensorFlow."""

import os

# TensorFlow reads this once, when first imported: its start-up notices are not for our users, its errors are. JAX has set
# it to 1 by now, so there is no telling whether a user did.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
