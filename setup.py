"""Builds the package from settings.ini, the one place where names, versions and requirements are written."""
import re, shutil
from configparser import ConfigParser
from pathlib import Path
import setuptools
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here/"settings.ini", encoding="utf8")
cfg = ini["DEFAULT"]
lib, url, branch = cfg["lib_path"], cfg["git_url"], cfg["branch"]

def words(key): return (cfg.get(key) or "").split()

def long_description():
    "README.md with links that hold wherever it is shown"
    text = (here/"README.md").read_text(encoding="utf8")
    text = re.sub(r"!\[(.*?)\]\((?!\w+:)(.*?)\)", rf"![\1]({url}/raw/{branch}/\2)", text)
    return re.sub(r"(?<!!)\[(.*?)\]\((?!\w+:|#)(.*?)\)", rf"[\1]({url}/blob/{branch}/\2)", text)

class WithNotebooks(build_py):
    "The notebooks go along, where `distsmooth lab` finds them"
    def run(self):
        super().run()
        to = Path(self.build_lib)/lib/"notebooks"
        if not self.editable_mode: shutil.copytree(here/cfg["nbs_path"], to, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))

setuptools.setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0", license_files=["LICENSE"],
    url=url, project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": url, "Changes": f"{url}/blob/{branch}/CHANGELOG.md"},
    classifiers=[
        "Development Status :: 3 - Alpha", "Environment :: Console", "Framework :: Jupyter", f"Intended Audience :: {cfg['audience']}", "Intended Audience :: Education",
        "Operating System :: OS Independent", *[f"Programming Language :: Python :: {v}" for v in ("3", "3.11", "3.12", "3.13")],
        "Topic :: Scientific/Engineering :: Artificial Intelligence", "Topic :: Scientific/Engineering :: Image Processing", "Typing :: Typed",
    ],
    packages=[lib, f"{lib}.engine"], package_data={lib: ["*.npz", "pretrained/**/*", "recipes/*.yaml", "engine/page_files/*", "py.typed"]}, cmdclass={"build_py": WithNotebooks},
    install_requires=words("requirements"), extras_require={k[:-len("_requirements")]: words(k) for k in cfg if k.endswith("_requirements")},
    python_requires=">="+cfg["min_python"], long_description=long_description(), long_description_content_type="text/markdown",
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f"{lib}={lib}._modidx:d"]},
)
