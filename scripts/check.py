"""Everything that must hold: notebooks, package, README and tests say the same, and all of it runs. Ends with pytest."""
import filecmp, os, shutil, subprocess, sys, tempfile, time
from itertools import takewhile
from pathlib import Path

ROOT, BIN = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
os.environ |= {'MPLBACKEND': 'agg', 'PYDEVD_DISABLE_FILE_VALIDATION': '1'}

def run(*command, cwd=ROOT, **env): subprocess.run([str(BIN/command[0]), *map(str, command[1:])], cwd=cwd, check=True, env=os.environ | env)

def fresh_copy(tmp):
    "What git would commit of the notebooks and the settings, in `tmp`"
    for name in ('nbs', 'settings.ini', 'pyproject.toml'):
        at = ROOT/name
        (shutil.copytree if at.is_dir() else shutil.copy)(at, Path(tmp)/name, **({'ignore': shutil.ignore_patterns('.ipynb_checkpoints')} if at.is_dir() else {}))
    return Path(tmp)

def same(new, old, pattern):
    "Files of this pattern that are not the same in both folders; `__main__.py` and `__init__.py`, which no notebook exports, do not count"
    names = {p.relative_to(d).as_posix() for d in (new, old) for p in d.rglob(pattern) if '.ipynb_checkpoints' not in p.parts and 'pretrained' not in p.parts and p.name not in ('__main__.py', '__init__.py')}
    return [n for n in sorted(names) if not ((new/n).exists() and (old/n).exists() and filecmp.cmp(new/n, old/n, shallow=False))]

def package_is_exported():
    with tempfile.TemporaryDirectory() as tmp:
        run('nbdev_export', cwd=fresh_copy(tmp))
        if wrong := same(Path(tmp)/'distsmooth', ROOT/'distsmooth', '*.py'): sys.exit(f'not what the notebooks export (run nbdev_export): {wrong}')

def notebooks_are_clean():
    with tempfile.TemporaryDirectory() as tmp:
        run('nbdev_clean', cwd=fresh_copy(tmp))
        if wrong := same(Path(tmp)/'nbs', ROOT/'nbs', '*.ipynb'): sys.exit(f'not clean (run nbdev_clean): {wrong}')

def readme_is_fresh(): run('python', 'scripts/readme.py', '--check')

def code_is_tidy():
    "pyflakes; except that `@patch` may give methods of one name to several classes, which it takes for a redefinition"
    files = sorted(p for d in ('distsmooth', 'tests', 'scripts') for p in (ROOT/d).rglob('*.py'))
    found = subprocess.run([BIN/'python', '-m', 'pyflakes', *files], capture_output=True, text=True)
    def patched(line):
        path, number, *_ = line.split(':')
        above = reversed(Path(path).read_text(encoding='utf8').splitlines()[:int(number) - 1])
        decorators = [*takewhile(lambda text: text.startswith('@'), above)]
        return 'redefinition of unused' in line and any(d.startswith('@patch') for d in decorators)
    wrong = [line for line in found.stdout.splitlines() if not patched(line)]
    if wrong or found.stderr: sys.exit('\n'.join([*wrong, found.stderr]))

def package_installs():
    "The source archive and the wheel, each installed where nothing of this folder is, draw a digit and bring the notebooks"
    build = 'from setuptools.build_meta import *; quiet = {"--global-option": ["--quiet"]}; build_sdist("dist", quiet); build_wheel("dist", quiet)'
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for name in ('distsmooth', 'nbs'): shutil.copytree(ROOT/name, tmp/'source'/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        for p in ROOT.iterdir():
            if p.is_file(): shutil.copy(p, tmp/'source')
        run('python', '-c', build, cwd=tmp/'source')
        for archive in sorted((tmp/'source'/'dist').iterdir()):
            at = tmp/archive.suffix[1:]
            run('python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps', '--no-build-isolation', '--target', at, archive)
            command = lambda *args: run('python', at/'bin'/'distsmooth', *args, cwd=tmp, PYTHONPATH=str(at))
            run('python', '-c', 'import distsmooth, sys; assert distsmooth.__file__.startswith(sys.argv[1]), distsmooth', at, cwd=tmp, PYTHONPATH=str(at))
            command('demo', '--n', 1, '--out', at/'out', '--quiet')
            command('lab', '--open', 'false', '--out', at/'lab')
            assert (at/'out'/'demo.png').is_file() and (at/'lab'/'course'/'01_toys.ipynb').is_file() and (at/'distsmooth'/'py.typed').is_file()

def book_builds(): run('python', 'scripts/book')
def notebooks_run(): run('nbdev_test', '--n_workers', 2, '--do_print', '--timing', OMP_NUM_THREADS='1')  # two workers of one thread each
def tests_pass(): run('python', '-m', 'pytest', '-q', '-n', 2, '--dist', 'loadfile', '--durations=8', '--timeout=600', 'tests', OMP_NUM_THREADS='1')

for step in (package_is_exported, notebooks_are_clean, readme_is_fresh, code_is_tidy, package_installs, book_builds, notebooks_run, tests_pass):
    start = time.time()
    print(f'== {step.__name__.replace("_", " ")}', flush=True)
    try: step()
    except subprocess.CalledProcessError as e: sys.exit(f'failed: {step.__name__.replace("_", " ")} (exit code {e.returncode})')
    if step is not tests_pass: print(f'   {time.time()-start:.0f} s', flush=True)
