"""Statements that Django puts together once: what a use costs afterwards is the database's own work.

    _KEY = Prepared(lambda key_id: Key.objects.select_related("identity").filter(pk=key_id))

    key = _KEY.first("key_…")               # as the queryset would, in the workspace's scope
    insert(row)                             # as row.save(force_insert=True), without its checks

For the few statements that most requests run: putting one together takes Django several times as long as
running it.
"""

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from typing import Any, Generic, TypeVar

from django.db import DEFAULT_DB_ALIAS, connection, connections, models, transaction
from django.db.models import query

from unkey.tenancy import OutsideWorkspace, check_owner, current_workspace, workspace_scope

_T = TypeVar("_T")
_WORKSPACE = "workspace"


class _Mark(str):
    """Stands in a statement for a text that each use gives."""

    name: str

    def __new__(cls, name: str) -> "_Mark":
        mark = super().__new__(cls, f"\0{name}")
        mark.name = name
        return mark


class Prepared(Generic[_T]):
    """A query with places for texts.

    Args:
        build: makes a queryset of model instances or of `values_list` from texts; called once for each kind
            of database. Tenant tables in it are limited to the scope of each use, unless it says `unscoped`.
    """

    def __init__(self, build: "Callable[..., models.QuerySet[Any, _T]]") -> None:
        self._build = build
        self._names = list(signature(build).parameters)
        self._statements: dict[str, _Statement] = {}

    def all(self, *values: str) -> list[_T]:
        """Return the rows for texts, given in the order of the builder's arguments.

        Raises:
            OutsideWorkspace: the query is of a workspace's rows, and there is no scope.
            TransactionManagementError: the query locks its rows, and there is no transaction.
        """
        statement = self._statements.get(connection.vendor) or self._prepare()
        given = dict(zip(self._names, values, strict=True))
        if statement.scoped:
            scope = current_workspace()
            if scope is None:
                raise OutsideWorkspace("a prepared query of a workspace's rows was run outside a scope")
            given[_WORKSPACE] = scope
        if statement.locks and not connection.in_atomic_block:
            raise transaction.TransactionManagementError("rows are locked in a transaction only")
        params = [given[part.name] if isinstance(part, _Mark) else part for part in statement.params]
        database = connections[DEFAULT_DB_ALIAS]
        with database.cursor() as cursor:
            cursor.execute(statement.sql, params)
            rows = cursor.fetchall()
        return [statement.made(list(row), database) for row in rows]

    def first(self, *values: str) -> _T | None:
        """Return the first row, or None; as `all`, for a query of at most one row."""
        return next(iter(self.all(*values)), None)

    def _prepare(self) -> "_Statement":
        with workspace_scope(_Mark(_WORKSPACE)):
            queryset = self._build(*(_Mark(name) for name in self._names))
        statement = self._statements[connection.vendor] = _Statement(queryset)
        return statement


class _Statement:
    """A queryset's SQL, and how a row of it becomes a result."""

    def __init__(self, queryset: Any) -> None:
        compiler: Any = queryset.query.get_compiler(connection=connection)
        sql, params = compiler.as_sql()
        self.sql: str = sql
        self.params: Sequence[Any] = params
        self.scoped = any(isinstance(part, _Mark) and part.name == _WORKSPACE for part in params)
        self.locks = queryset.query.select_for_update
        select = compiler.select
        self._converters = list(compiler.get_converters([one[0] for one in select]).items())
        self._model: type[models.Model] | None = None
        if queryset._iterable_class is query.ModelIterable:
            klass = compiler.klass_info
            fields = klass["select_fields"]
            self._model, self._columns = klass["model"], slice(fields[0], fields[-1] + 1)
            self._names = [one[0].target.attname for one in select[self._columns]]
            populators: Any = query.get_related_populators  # whose stubs are of another version
            self._populators = populators(klass, select, DEFAULT_DB_ALIAS)

    def made(self, row: list[Any], database: Any) -> Any:
        """Return what the queryset would have made of a row that a connection read."""
        for place, (converters, expression) in self._converters:
            for convert in converters:
                row[place] = convert(row[place], expression, database)
        if self._model is None:
            return tuple(row)
        made = self._model.from_db(DEFAULT_DB_ALIAS, self._names, row[self._columns])
        for populator in self._populators:
            populator.populate(row, made)
        return made


def insert(row: models.Model) -> None:
    """Write a new row of a table whose columns need nothing but their values.

    Raises:
        OutsideWorkspace: the row is of another workspace than the scope's.
        IntegrityError: the database refuses it.
    """
    check_owner(row)
    database = connections[DEFAULT_DB_ALIAS]  # itself, not the proxy, which looks it up at each access
    sql, fields = _insertion(type(row), database.vendor)
    values = [field.get_db_prep_save(getattr(row, field.attname), database) for field in fields]
    with database.cursor() as cursor:
        cursor.execute(sql, values)
    row._state.adding, row._state.db = False, DEFAULT_DB_ALIAS


@cache
def _insertion(model: type[models.Model], vendor: str) -> "tuple[str, list[models.Field[Any, Any]]]":
    quote = connection.ops.quote_name
    fields = list(model._meta.local_concrete_fields)
    columns = ", ".join(quote(str(field.column)) for field in fields)
    places = ", ".join(["%s"] * len(fields))
    return f"INSERT INTO {quote(model._meta.db_table)} ({columns}) VALUES ({places})", fields  # noqa: S608
