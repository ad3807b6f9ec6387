"""The public names of the package, read from its source: signatures, docments and docstrings, as pages that Sphinx's Python domain draws.

Nothing is imported and nothing runs: `ast` gives the code, `tokenize` the comments, so an array as a default value is text like any other."""
import ast, io, re, tokenize
from dataclasses import dataclass, field

@dataclass
class Thing:
    "A function, a class, a property or a value"
    name: str
    kind: str  # function, class, method, property or data
    signature: str = ''
    text: str = ''
    params: list = field(default_factory=list)  # (name, comment)
    returns: str = ''
    bases: list = field(default_factory=list)
    members: list = field(default_factory=list)

@dataclass
class Module:
    name: str
    text: str
    notebook: str  # path below nbs/
    things: list

def comments(source):
    "The comment of each line"
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}

def decorators(node): return [ast.unparse(d) for d in node.decorator_list]

def arguments(node, notes, skip_first):
    "(signature, [(name, comment)], comment of what is returned); a comment belongs to the last argument on its line"
    a = node.args
    pos, defaults = [*a.posonlyargs, *a.args], [None]*(len(a.posonlyargs) + len(a.args) - len(a.defaults)) + a.defaults
    each = [*zip(pos, defaults), (a.vararg, None), *zip(a.kwonlyargs, a.kw_defaults), (a.kwarg, None)]
    lines = {}
    for arg, default in each:
        if arg: lines[(default or arg).end_lineno] = arg.arg
    stars = {a.vararg: '*', a.kwarg: '**'}
    params = [(stars.get(arg, '') + arg.arg, notes[at]) for arg, default in each if arg and (at := (default or arg).end_lineno) in notes and lines[at] == arg.arg]
    gives = notes.get(node.returns.end_lineno, '') if node.returns and node.returns.end_lineno not in lines else ''
    if skip_first and pos:
        first = a.posonlyargs or a.args
        if len(a.defaults) == len(pos): a.defaults.pop(0)
        first.pop(0)
    return f'({ast.unparse(a)})' + (f' -> {ast.unparse(node.returns)}' if node.returns else ''), params, gives

def function(node, notes, method=False):
    marks = decorators(node)
    static = 'staticmethod' in marks
    signature, params, gives = arguments(node, notes, method and not static)
    kind = 'property' if any(m in ('property', 'cached_property') or 'as_prop' in m for m in marks) else 'method' if method else 'function'
    return Thing(node.name, kind, '' if kind == 'property' else signature, ast.get_docstring(node) or '', params, gives)

def fields(node, notes):
    "The signature of a dataclass"
    own = [n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_')]
    signature = ', '.join(f'{n.target.id}: {ast.unparse(n.annotation)}' + (f' = {ast.unparse(n.value)}' if n.value else '') for n in own)
    return f'({signature})', [(n.target.id, notes[n.end_lineno]) for n in own if n.end_lineno in notes]

def klass(node, notes):
    thing = Thing(node.name, 'class', text=ast.get_docstring(node) or '', bases=[ast.unparse(b) for b in node.bases])
    if any(d.startswith('dataclass') for d in decorators(node)): thing.signature, thing.params = fields(node, notes)
    for n in node.body:
        if isinstance(n, ast.FunctionDef): add(thing, n, notes)
    return thing

def add(thing, node, notes):
    "A method of a class: its `__init__` is the class's own signature"
    made = function(node, notes, method=True)
    if made.name == '__init__': thing.signature, thing.params = made.signature, made.params
    elif not made.name.startswith('_') and made.name != 'extra_repr': thing.members.append(made)

def patched(node):
    "The classes to which `@patch` gives this function"
    if not any(re.match(r'patch\b', d) for d in decorators(node)) or not node.args.args: return []
    return re.findall(r'\w+', ast.unparse(node.args.args[0].annotation)) if node.args.args[0].annotation else []

def value(node):
    "What a public constant is, if it fits on a line"
    return text if len(text := ast.unparse(node)) <= 90 else ''

def read(path, name):
    "A module that nbdev exported"
    source = path.read_text(encoding='utf8')
    tree, notes = ast.parse(source), comments(source)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef): found[node.name] = klass(node, notes)
        elif isinstance(node, ast.FunctionDef):
            owners = patched(node)
            for owner in owners: add(found.setdefault(owner, Thing(owner, 'class')), node, notes)
            if not owners: found[node.name] = function(node, notes)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name): found.setdefault(target.id, Thing(target.id, 'data', value(node.value), notes.get(node.end_lineno, '')))
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), [])
    notebook = re.search(r'File to edit: (?:\.\./)+nbs/(\S+\.ipynb)', source)
    return Module(name, ast.get_docstring(tree) or '', notebook and notebook[1], [found[n] for n in public if n in found])

def modules(package):
    "Every exported module of the package folder, those of the course first"
    paths = sorted((p for p in package.rglob('*.py') if not p.stem.startswith('_')), key=lambda p: (len(p.parts), p.stem))
    read_all = [read(p, '.'.join([package.name, *p.relative_to(package).with_suffix('').parts])) for p in paths]
    return [m for m in read_all if m.notebook]

def places(modules):
    "Where each public name stands, and each method (`Kernel.sample`); a name that two modules have is left out, but for its full form"
    named = [pair for m in modules for t in m.things for pair in ((t.name, f'{m.name}.{t.name}'), *((f'{t.name}.{x.name}', f'{m.name}.{t.name}.{x.name}') for x in t.members))]
    named += [(where, where) for where in {where for _, where in named}]
    return {n: where for n, where in named if [x for x, _ in named].count(n) == 1}

def plain(text):
    "Docstring or comment as markdown: code spans stay, everything else means itself"
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p if i % 2 else re.sub(r'([\\*_$<>\[\]{}~|#^])', r'\\\1', p) for i, p in enumerate(parts))

def linked(text, where):
    "Code spans that are a public name become links"
    return re.sub(r'`([\w.]+)`', lambda m: f'{{py:obj}}`{m[1]} <{where[m[1]]}>`' if m[1] in where else m[0], text)

def directive(thing, where, depth=4):
    fence, text = '`'*(depth + 3), lambda s: linked(plain(s), where)
    data = thing.kind == 'data'
    lines = [f'{fence}{{py:{thing.kind}}} {thing.name}' + ('' if data else thing.signature)]
    lines += [f':value: {thing.signature}'] if data and thing.signature else []
    lines += ['']
    if thing.bases: lines += ['A ' + ', '.join(f'`{b}`' for b in thing.bases) + '.', '']
    lines += [text(thing.text), '']
    lines += [f':param {n.replace("*", chr(92) + "*")}: {text(c)}' for n, c in thing.params]
    if thing.returns: lines += [f':returns: {text(thing.returns)}']
    for m in thing.members: lines += ['', directive(m, where, depth - 1)]
    return '\n'.join([*lines, fence])

def page(module, where, title):
    "One module as a page"
    head = [f'# {module.name}', '', f'> {plain(module.text)}', '', f'Written and explained in [{title}](../{module.notebook}).', '', f'```{{py:currentmodule}} {module.name}', '```', '']
    return '\n'.join(head) + '\n\n'.join(directive(t, where) for t in module.things) + '\n'

def contents(modules):
    "The page that lists all modules"
    rows = '\n'.join(f'- [{m.name}]({m.name}.md): {linked(plain(m.text), {})}' for m in modules)
    names = '\n'.join(f'{m.name.partition(".")[2]} <{m.name}>' for m in modules)
    return f'# Every public name\n\nSignatures and arguments, from the source of the package. Each page links to the notebook that explains it.\n\n{rows}\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n'
