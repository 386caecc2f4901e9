"""What pyproject.toml cannot say: the folder ``configs`` is the package ``gh_downstream.configs``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gh_downstream", "gh_downstream.*"]), "gh_downstream.configs"],
    package_dir={"gh_downstream.configs": "configs"},
    package_data={
        "gh_downstream": ["py.typed", "reporting/templates/*.html"],
        "gh_downstream.configs": ["**/*.yaml"],
    },
)
