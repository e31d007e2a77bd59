"""The places that code can reach from a function, a module or an object, and that other code may write to.

Attributes of modules and of objects of the same package, lists, dicts, sets, cells of closures, and the global names
that the code of a function reads. Library code is taken to keep nothing.

Over 250 lines: one walk, with a method for each kind of value that it comes to.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import contextvars
import copy
import dis
import functools
import os
import queue
import sys
import threading
import types
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odenet.kit import shown
from odenet_torch.field import outer_data, random_state, shared_hooks
from odenet_torch.field.knowledge import KEY
from odenet_torch.field.outer_data import LIBRARIES, users_own
from odenet_torch.field.places import (
    OF_MODULES,
    CachedResults,
    ClassAttributes,
    ClosureCell,
    CollectionLocation,
    ContextValue,
    GlobalNames,
    Location,
    MappingEntries,
    MappingLocation,
    ModuleAttributes,
    SlotAttributes,
    SuspendedFrame,
    WeakEntries,
    WeaklyKeyed,
)
from odenet_torch.field.stored_values import StoredValues

_MANY = 4096  # entries of a container, beyond which these are not looked into
_MOST = 1 << 16  # beyond which it is no place to look at
_LIMIT = 20_000  # values that are looked at
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, torch.dtype, torch.Size})
_PLAIN: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((bool, str, bytes, int, float, complex, torch.dtype), lambda value: value),
    types.FunctionType: lambda value: hash(value.__code__),
    **dict.fromkeys((type, types.ModuleType, types.BuiltinFunctionType), lambda value: value.__name__),
}
_DATA = (bool, int, float, complex, str, list, dict, set, tuple, Tensor, np.ndarray)
_RECORDS = (
    types.SimpleNamespace,
    collections.ChainMap,
    collections.UserDict,
    collections.UserList,
    queue.Queue,
    concurrent.futures.Future,
)
_CACHED = functools._lru_cache_wrapper


class ReachableObjects:
    """All that can be reached from something.

    Args:
        root: a function, module or object.
    """

    def __init__(self, root: object) -> None:
        self.places: list[Location] = []
        self.watched: list[tuple[str, Tensor | np.ndarray]] = []
        """Tensors and arrays, which may be written on."""
        self.handed: tuple[bool, ...] = ()
        """Of a function: which of the weights that it is handed need a gradient."""
        self.generators: list[Any] = []
        """Of random numbers."""
        self.codes: set[types.CodeType] = set()
        """The code of all functions."""
        self.plain: list[tuple[str, Any, Any]] = []
        """Of what was come to, numbers, words and what can be called: its name, its class, and its value or code."""
        self.variant: tuple[int, int] | None = None
        """What `looked` makes of these."""
        self.hooks: list[dict[Any, Any]] = []
        """Of modules; those that were empty are looked into when they no longer are."""
        self.backward_hooks: list[dict[Any, Any]] = []
        self._shared = [*shared_hooks.functions()]
        self._modules: list[nn.Module] = []
        self._inner: set[int] = set()
        # arguments are of no package themselves
        self._packages = set(map(_package, (*root[0], *root[1].values()))) if type(root) is tuple else {_package(root)}
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no id is taken again
        stack: list[tuple[str, Any]] = [("", root)]
        while stack and len(self._seen) < _LIMIT:
            name, value = stack.pop()
            kind = type(value)
            if kind in _PLAIN or callable(value):
                self.plain.append((name, kind, _PLAIN[kind](value) if kind in _PLAIN else None))
            if kind in _ATOMS or id(value) in self._seen:
                continue
            self._seen.add(id(value))
            self._alive.append(value)
            into = _INTO.get(kind) or _into(kind)
            if into is not None:
                stack.extend(into(self, name, value))
        self._alive.clear()
        outer = [module for module in self._modules if id(module) not in self._inner]
        self._outer = [*map(weakref.ref, outer)]  # a block knows of the stack that holds it, and may outlive that
        self._modules.clear()
        self.contents = [place.contents() for place in self.places]
        pairs = [*zip(self.places, self.contents, strict=True)]
        sized = [p.entries for p, _ in pairs if p.entries is not None and type(p) is not GlobalNames]
        sized += self.hooks + self.backward_hooks
        classes = [(vars(p.kind), c) for p, c in pairs if isinstance(p, ClassAttributes)]
        self.stored = StoredValues(
            [*sized, *(own for own, _ in classes)],
            [(p.entries, key, c.get(key)) for p, c in pairs if p.entries is not None for key in p.keys(c)],
            [(own, key, value) for own, c in classes for key, value in c.items()],
        )
        others = [pair for pair in pairs if pair[0].entries is None]
        self.others = [(p, c) for p, c in others if not isinstance(p, ClassAttributes)]
        """The places that are no dicts, and what stands there."""
        self.complete = self.stored
        """What was stored when it was looked up."""

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that are not within another one."""
        return [module for ref in self._outer if (module := ref()) is not None]

    def current(self) -> bool:
        """Whether all of it still stands where it stood; it may say no where what stands there is equal."""
        if self._shared != [*shared_hooks.functions()]:
            return False
        return self.stored.stand() and (not self.others or all(p.same(contents) for p, contents in self.others))

    def without(self, removed: set[int], contents: list[dict[Any, Any]]) -> ReachableObjects:
        """The same without some tensors, by `id`, and of the places only these contents."""
        rest = copy.copy(self)
        rest.contents = contents
        rest.watched = [entry for entry in self.watched if id(entry[1]) not in removed]
        rest.stored = StoredValues((), [({}, None, self)])  # it was no longer current
        return rest

    def without_slots(
        self, slots: Container[tuple[int, Any]], buffers: Sequence[tuple[str, dict[str, Any]]], written: Container[int]
    ) -> ReachableObjects:
        """The same as it is now, without entries of dicts, and with buffers of modules.

        Args:
            slots: by `id` of the dict, and key.
            buffers: names and dicts.
            written: by `id`, tensors among these that are written on.
        """
        rest = copy.copy(self)
        places = [MappingLocation(name, entries) for name, entries in buffers]
        rest.places = [*self.places, *places]
        rest.contents = [
            {key: x for key, x in place.contents().items() if (id(place.entries), key) not in slots}
            for place in rest.places
        ]
        values = [x for contents in rest.contents for x in contents.values()]
        kept = {id(x) for value in values for x in (value if type(value) is tuple else (value,))}
        passing = {
            id(place.contents().get(key))
            for place in self.places
            for key in place.contents()
            if (id(place.entries), key) in slots
        } - kept
        rest.watched = [entry for entry in self.watched if id(entry[1]) not in passing]
        rest.watched += [
            (f"{name}.{key}", x)
            for name, entries in buffers
            for key, x in entries.items()
            if x is not None and id(x) not in written
        ]
        rest.complete = rest.stored = StoredValues(
            [*self.complete.sized, *(entries for _, entries in buffers)],
            [
                *(entry for entry in self.complete.entries if (id(entry[0]), entry[1]) not in slots),
                *((entries, key, x) for _, entries in buffers for key, x in entries.items()),
            ],
            self.complete.of_classes,
        )
        return rest

    def watch(self, name: str, value: Tensor | np.ndarray) -> Iterable[tuple[str, Any]]:
        """Note a tensor or an array that was reached."""
        self.watched.append((name, value))
        return ()

    def random_generator(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """Note a generator of random numbers."""
        self.generators.append(value)
        return ()

    def module(self, name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
        """Its attributes, children, and hooks."""
        own, kind = vars(module), type(module)
        self._modules.append(module)
        self._inner |= set(map(id, module._modules.values()))
        self.hooks += (module._forward_hooks, module._forward_pre_hooks)
        self.backward_hooks += (module._backward_hooks, module._backward_pre_hooks)
        yield from ((f"{name}.{key}", child) for key, child in module._modules.items())
        # what other parts of torch, such as torch.distributed, keep on a module is theirs
        if kind.__module__.startswith("torch.") and not kind.__module__.startswith(("torch.nn.modules", "torch.nn.ut")):
            return
        self.places.append(ModuleAttributes(name, own))
        if module._modules:
            self.places.append(MappingLocation(name, module._modules))
        self.plain.append((name, bool, module.training))
        for key, value in own.items():
            if key not in OF_MODULES or ("hook" in key and value):
                yield f"{name}.{key}", value
        yield from self.kind(kind)
        yield from (("", hook) for hook in shared_hooks.functions().values())

    def builtin(self, name: str, value: types.BuiltinMethodType) -> Iterable[tuple[str, Any]]:
        """A function that is not written in Python, of which only the generator that it draws from is looked at."""
        owner = value.__self__
        return ((name, owner),) if isinstance(owner, random_state.GENERATORS) else ()

    def object(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        """The attributes of an object of the same package."""
        own = getattr(value, "__dict__", None)
        if own is None:
            own = {}
        elif not isinstance(own, dict):
            return
        if type(value).__module__.startswith("odenet_torch.conversion"):
            yield from ((name, inner) for inner in own.values() if isinstance(inner, nn.Module))
        elif self._belongs(_package(value)) or isinstance(value, _RECORDS) or outer_data.settings_of_library(value):
            if isinstance(value, dict):
                self.places.append(place := outer_data.StrangeEntries(name, value))
                yield from ((f"{name}[{shown(key)}]", item) for key, item in place.contents().items())
            elif isinstance(value, list):
                self.places.append(outer_data.StrangeList(name, value))
                yield from ((f"{name}[{i}]", item) for i, item in enumerate(list.__iter__(value)))
            self.places.append(MappingLocation(name, own))
            if slots := _slots(type(value)):
                self.places.append(place := SlotAttributes(name, value, slots))
                yield from ((f"{name}.{key}", item) for key, item in place.contents().items())
            yield from ((f"{name}.{key}", item) for key, item in own.items() if key != KEY)
            yield from self.kind(type(value))

    def _belongs(self, package: str) -> bool:
        """Whether a package is one that f is made of, or the user's own."""
        return package in self._packages or users_own(package)

    def kind(self, kind: type) -> Iterator[tuple[str, Any]]:
        """Attributes of a class, and what its code reads."""
        for base in kind.__mro__:
            if base is object or _root(base.__module__) in LIBRARIES or id(base) in self._seen:
                continue
            if "_odenet_base" in vars(base):  # the class of a converted layer, which is to be known as it was before
                continue
            self._seen.add(id(base))
            code, names = _members(base)
            self.places.append(ClassAttributes(base, _all))
            own = vars(base)
            yield from ((f"{base.__name__}.{name}", own[name]) for name in names)
            yield from code

    def function(self, name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        """What it closes over, its defaults, and the global names that it reads."""
        self.codes.add(function.__code__)
        if _root(function.__module__ or "") in LIBRARIES:
            return
        self._packages.add(_package(function))
        for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) not in self._seen and free != "__class__":
                self._seen.add(id(cell))
                self._alive.append(cell)
                self.places.append(place := ClosureCell(free, cell))
                yield from ((free, value) for value in place.contents().values())
        yield from ((f"{name} (a default)", value) for value in function.__defaults__ or ())
        yield from ((f"{name} (a default)", value) for value in (function.__kwdefaults__ or {}).values())
        if function.__dict__.keys() - {KEY}:
            yield name, function.__dict__
        reads, writes, attributes, stored, modules = _names(function.__code__)
        entries = function.__globals__
        named = [(key, entries.get(key)) for key in reads]
        named += [
            *_closed_over(function),
            *((key, sys.modules.get(key)) for key in modules if users_own(_root(key))),
        ]
        for key, value in named:
            owners = (_bound_to(value), *random_state.named(attributes, value))
            yield from ((key, owner) for owner in owners if isinstance(owner, random_state.GENERATORS))
            if isinstance(value, type) and self._belongs(_package(value)):
                yield from self.kind(value)
            elif type(value) is types.ModuleType and self._belongs(_root(value.__name__)):
                yield from self.names(vars(value), attributes, stored)
            elif value is not None:
                yield from outer_data.named(value, attributes)
        yield from self.names(entries, reads, writes)

    def names(
        self, entries: dict[str, Any], reads: frozenset[str], writes: frozenset[str] = frozenset()
    ) -> Iterator[tuple[str, Any]]:
        """Names of a module of Python's that code reads or writes."""
        names = frozenset(key for key in reads if self._watched(entries.get(key, entries), entries)) | writes
        if names:
            self.places.append(GlobalNames(entries, names))
            yield from ((key, entries[key]) for key in names if key in entries)

    def _watched(self, value: Any, entries: dict[str, Any]) -> bool:
        """Whether a global name stands for data, or for a function beside the one that reads it, or of the user's own:
        those of a library of networks lead to all of it."""
        if isinstance(value, types.FunctionType):
            return value.__globals__ is entries or users_own(_root(value.__module__ or ""))
        return value is not entries and not isinstance(value, (types.ModuleType, types.BuiltinFunctionType, type))

    def mapping(self, name: str, value: dict[Any, Any]) -> Iterable[tuple[str, Any]]:
        """A dict and its entries."""
        if len(value) > _MOST:
            return ()
        self.places.append(MappingEntries(name, value))
        if len(value) > _MANY:
            return ()
        return (
            (f"{name}[{key!r}]" if type(key) is str else f"{name}[{shown(key)}]", item)
            for key, item in value.items()
            if key != KEY
        )

    def sequence(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """A list, deque or set, and its entries."""
        if len(value) > _MOST:
            return ()
        self.places.append(CollectionLocation(name, value))
        return () if len(value) > _MANY else ((f"{name}[{i}]", item) for i, item in enumerate(value))

    def weak(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """A dict that holds its keys weakly."""
        if len(value) > _MOST:
            return ()
        self.places.append(place := WeaklyKeyed(name, value.data))
        return () if len(value) > _MANY else ((f"{name}[{k!r}]", item) for k, item in place.contents().items())

    def weak_values(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """A dict or set that holds its values weakly."""
        self.places.append(WeakEntries(name, value))
        return ()

    def local(self, name: str, value: threading.local) -> Iterable[tuple[str, Any]]:
        """What this thread keeps there."""
        return self.mapping(name, vars(value))

    def context(self, name: str, value: contextvars.ContextVar[Any]) -> Iterable[tuple[str, Any]]:
        """A context variable."""
        self.places.append(place := ContextValue(name, value))
        return ((name, item) for item in place.contents().values())

    def cache(self, name: str, value: functools._lru_cache_wrapper[Any]) -> Iterable[tuple[str, Any]]:
        """A function whose results are kept."""
        self.places.append(CachedResults(f"the cache of {value.__name__}", value))
        return ((name, value.__wrapped__),)

    def buffer(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """Bytes, or numbers of C's, that are written on in place."""
        self.places += outer_data.BufferContents.of(name, value)
        return ()

    def behind(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """What a reference or a view shows."""
        return ((name, outer_data.behind(value)),)

    def environment(self, name: str, value: os._Environ[str]) -> Iterable[tuple[str, Any]]:
        """The variables of the environment."""
        self.places.append(MappingEntries(name, getattr(value, "_data")))  # noqa: B009
        return ()

    def generator(self, name: str, value: types.GeneratorType[Any, Any, Any]) -> Iterable[tuple[str, Any]]:
        """The variables of a generator."""
        self.places.append(place := SuspendedFrame(name, value))
        return ((f"{name}.{key}", item) for key, item in place.contents().items())

    def fixed(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """Visit a value that is made of other values and cannot change, such as a tuple."""
        parts: Iterable[Any]
        match value:
            case types.MethodType():
                owner = value.__self__  # a class by itself is not looked into, but that whose `apply` f calls is
                code = self.kind(owner) if isinstance(owner, type) and self._belongs(_package(owner)) else ()
                return (name, owner), (name, value.__func__), *code
            case functools.partial():
                parts = (value.func, *value.args, value.keywords)
            case _:
                parts = value if len(value) <= _MANY else ()
        return ((f"{name}[{i}]", part) for i, part in enumerate(parts))


def held_by(value: Any) -> Iterator[Location]:
    """The places in a closure or in an object of somebody's that is no module: its own, and not what its code reads."""
    match value:
        case types.FunctionType():
            names = value.__code__.co_freevars
            yield from (ClosureCell(name, cell) for name, cell in zip(names, value.__closure__ or (), strict=True))
        case functools.partial():
            yield from (place for part in (*value.args, *value.keywords.values()) for place in held_by(part))
        case types.MethodType():
            yield from held_by(value.__self__)
        case nn.Module() | type() | types.ModuleType():
            return
        case _ if _root(type(value).__module__) not in LIBRARIES or isinstance(value, _RECORDS):
            own = getattr(value, "__dict__", None)
            if isinstance(own, dict):
                yield MappingLocation("", own)
            if slots := _slots(type(value)):
                yield SlotAttributes("", value, slots)


def _into(kind: type) -> Callable[[ReachableObjects, str, Any], Iterable[tuple[str, Any]]] | None:
    """How values of a class are looked into."""
    base = next((base for base in _WAYS if issubclass(kind, base)), None)
    # a container with access of its own, such as one that makes what it is asked for, is no place to look into
    strange = base in _CONTAINERS and kind not in _CONTAINERS and any(name in vars(kind) for name in _ACCESS)
    into = ReachableObjects.object if base is None or strange else _WAYS[base]
    _INTO[kind] = into
    return into


_WAYS: dict[type, Callable[[ReachableObjects, str, Any], Iterable[tuple[str, Any]]]] = {
    Tensor: ReachableObjects.watch,
    np.ndarray: ReachableObjects.watch,
    nn.Module: ReachableObjects.module,
    types.FunctionType: ReachableObjects.function,
    dict: ReachableObjects.mapping,
    list: ReachableObjects.sequence,
    set: ReachableObjects.sequence,
    collections.deque: ReachableObjects.sequence,
    types.MethodType: ReachableObjects.fixed,
    types.BuiltinMethodType: ReachableObjects.builtin,
    functools.partial: ReachableObjects.fixed,
    tuple: ReachableObjects.fixed,
    weakref.WeakKeyDictionary: ReachableObjects.weak,
    weakref.WeakValueDictionary: ReachableObjects.weak_values,
    weakref.WeakSet: ReachableObjects.weak_values,
    threading.local: ReachableObjects.local,
    contextvars.ContextVar: ReachableObjects.context,
    _CACHED: ReachableObjects.cache,
    **dict.fromkeys(random_state.GENERATORS, ReachableObjects.random_generator),
    types.GeneratorType: ReachableObjects.generator,
    os._Environ: ReachableObjects.environment,
    **dict.fromkeys(outer_data.BUFFERS, ReachableObjects.buffer),
    **dict.fromkeys((weakref.ref, types.MappingProxyType, *outer_data.VIEWS), ReachableObjects.behind),
    memoryview: ReachableObjects.buffer,
}
_CONTAINERS = {dict, list, set, tuple, collections.deque, collections.OrderedDict, collections.defaultdict}
_ACCESS = ("__getitem__", "__setitem__", "__iter__", "keys", "items")
_INTO: weakref.WeakKeyDictionary[type, Any] = weakref.WeakKeyDictionary()


@functools.lru_cache(4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], ...]:
    """The global names that code reads, and those that it writes; attributes of anything that it reads, and writes; and
    modules that it imports."""
    by_use = reads, writes, attributes, stored, modules = set[str](), set[str](), set[str](), set[str](), set[str]()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"):
            (writes if instruction.opname == "STORE_GLOBAL" else reads).add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            modules.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "STORE_ATTR"):
            (stored if instruction.opname == "STORE_ATTR" else attributes).add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for names, more in zip(by_use, _names(constant), strict=True):
                names |= more
    return tuple(map(frozenset, by_use))


def data_of_class(kind: type) -> Iterator[tuple[str, Any]]:
    """What the code of a class reads beside its instances: attributes of the class, and global names."""
    for base in kind.__mro__:
        if base is object or _root(base.__module__) in LIBRARIES:
            continue
        code, names = _members(base)
        own = vars(base)
        yield from ((name, own[name]) for name in sorted(names) if own[name] is None or isinstance(own[name], _DATA))
        for function in (value for _, value in code if isinstance(value, types.FunctionType)):
            entries = function.__globals__
            for name in sorted(_names(function.__code__)[0]):
                if name in entries and isinstance(entries[name], _DATA):
                    yield name, entries[name]


def _bound_to(value: Any) -> Any:
    """What a method is bound to; attributes of anything else are made by code of the user's."""
    return value.__self__ if isinstance(value, (types.BuiltinMethodType, types.MethodType)) else None


def _closed_over(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The modules of Python's and the functions that a function closes over."""
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # nothing yet
            if isinstance(cell.cell_contents, (types.ModuleType, types.FunctionType, types.MethodType)):
                yield free, cell.cell_contents


_MEMBERS: weakref.WeakKeyDictionary[type, tuple[int, list[str], frozenset[str]]] = weakref.WeakKeyDictionary()


def _members(kind: type) -> tuple[list[tuple[str, Any]], frozenset[str]]:
    """The functions and descriptors of a class, and the names of its attributes that are no code."""
    own = vars(kind)
    known = _MEMBERS.get(kind)
    if known is None or known[0] != len(own):
        code = [key for key, value in own.items() if _is_code(_code(value))]
        data = [key for key, value in own.items() if not key.startswith(("__", "_abc_")) and _is_data(value)]
        known = _MEMBERS[kind] = len(own), code, frozenset(data)
    return [(f"{kind.__name__}.{key}", _code(own[key])) for key in known[1] if key in own], known[2]


def _all(kind: type) -> frozenset[str]:
    _, data = _members(kind)
    return data.union(_MEMBERS[kind][1])


def _is_data(value: Any) -> bool:
    """Whether an attribute of a class is neither code nor what describes attributes of instances."""
    return not hasattr(type(value), "__get__") and not isinstance(value, (type, types.ModuleType))


def _is_code(value: Any) -> bool:
    """Whether it is a function, one whose results are kept, or a descriptor that somebody wrote."""
    if isinstance(value, (types.FunctionType, _CACHED)):
        return True
    return hasattr(type(value), "__get__") and _root(type(value).__module__) not in LIBRARIES


def _code(value: Any) -> Any:
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, (classmethod, staticmethod, types.MethodType)) else value


def _package(value: object) -> str:
    """The package of a function, or of the class of an object."""
    module = getattr(value, "__module__", None)
    return _root(module if isinstance(module, str) else type(value).__module__)


@functools.lru_cache(4096)
def _slots(kind: type) -> tuple[str, ...]:
    """The names of attributes that stand in no dict."""
    named = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    flat = [name for names in named for name in ((names,) if isinstance(names, str) else names)]
    return tuple(name for name in flat if name not in ("__dict__", "__weakref__"))


@functools.lru_cache(4096)
def _root(module: str) -> str:
    return module.partition(".")[0]
