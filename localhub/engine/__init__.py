"""Runs evalscripts V3 unchanged in V8, with the semantics of Sentinel Hub's service."""

from localhub.engine.errors import EvalscriptError
from localhub.engine.scenes import Dataset, SceneInfo
from localhub.engine.script import Evalscript, Plan
from localhub.engine.setup import Input, Output, Setup

__all__ = ["Dataset", "Evalscript", "EvalscriptError", "Input", "Output", "Plan", "SceneInfo", "Setup"]
