"""Packages: apd_jax/, and configs/ as apd_jax.configs, which setup.cfg alone cannot express."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["apd_jax*"]), "apd_jax.configs"],
    package_dir={"apd_jax.configs": "configs"},
)
