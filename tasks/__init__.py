"""The stages of the flow: one file per stage, plain functions first, thin Prefect tasks at the bottom."""
