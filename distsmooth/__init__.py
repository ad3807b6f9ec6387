__version__ = "0.2.0"

# What most people need, imported when it is asked for: `from distsmooth import SmoothedModel`
_HOME = {'SmoothedModel': 'pipeline', 'load_dataset': 'data', 'single_step': 'denoising', 'playground': 'engine.page'}
__all__ = [*_HOME]

def __getattr__(name):
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)

def __dir__(): return sorted([*globals(), *_HOME])
