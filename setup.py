"""Builds the package from settings.ini, the one place where names, versions and requirements are written."""
from configparser import ConfigParser
from pathlib import Path
import setuptools

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here/"settings.ini", encoding="utf8")
cfg = ini["DEFAULT"]

def words(key): return (cfg.get(key) or "").split()

extras = {k[:-len("_requirements")]: words(k) for k in cfg if k.endswith("_requirements")}
lib, readme = cfg["lib_path"], here/"README.md"

setuptools.setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Programming Language :: Python :: 3"],
    packages=[lib, f"{lib}.engine"], package_data={lib: ["*.npz", "pretrained/**/*", "recipes/*.yaml"]},
    install_requires=words("requirements"), extras_require=extras, python_requires=">="+cfg["min_python"],
    long_description=readme.read_text(encoding="utf8") if readme.exists() else "", long_description_content_type="text/markdown",
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f"{lib}={lib}._modidx:d"]},
)
