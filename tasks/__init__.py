"""The stages of the flow: one file per stage, plain functions first, thin Prefect tasks at the bottom."""

import warnings

warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)  # from fs, below eo-learn
