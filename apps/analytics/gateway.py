"""The SQL gateway: reads a customer's SELECT, refuses what is not known to be harmless, confines the rest.

    sql = confine("SELECT count() FROM key_verifications_v1", scope)

What is not listed is refused: statements, clauses, tables, functions, names of unusual characters. Each
mention of a table is replaced by a subquery that has only the caller's rows and the public columns, so
that nothing written around it (joins, unions, OR) can reach other rows. The text that is run is written
anew from the tree, read once more, and must mean the same.

Source: reference, api.md 8.3.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import TokenType

from apps.analytics.schema import DATABASE, LONGEST, SOURCES, Source
from unkey import clock
from unkey.errors import (
    InvalidAnalyticsFunction,
    InvalidAnalyticsQuery,
    InvalidAnalyticsQueryType,
    InvalidAnalyticsTable,
    QueryRangeExceedsRetention,
)

# It tells what it makes of a customer's text; the customer is told by an error.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

MOST_COLUMNS = 64
MOST_NODES = 2000
MOST_ROWS = 10_000

FUNCTIONS = frozenset(
    [
        "count",
        "sum",
        "avg",
        "min",
        "max",
        "any",
        "grouparray",
        "groupuniqarray",
        "uniq",
        "uniqexact",
        "quantile",
        "countif",
        "sumif",
        "now",
        "now64",
        "today",
        "todate",
        "todatetime",
        "todatetime64",
        "tostartofminute",
        "tostartofhour",
        "tostartofday",
        "tostartofweek",
        "tostartofmonth",
        "tostartofquarter",
        "tostartofyear",
        "date_trunc",
        "datetrunc",
        "formatdatetime",
        "fromunixtimestamp64milli",
        "tounixtimestamp64milli",
        "tointervalnanosecond",
        "tointervalmicrosecond",
        "tointervalmillisecond",
        "tointervalsecond",
        "tointervalminute",
        "tointervalhour",
        "tointervalday",
        "tointervalweek",
        "tointervalmonth",
        "tointervalquarter",
        "tointervalyear",
        "lower",
        "upper",
        "substring",
        "concat",
        "length",
        "trim",
        "startswith",
        "endswith",
        "jsonextractstring",
        "round",
        "floor",
        "ceil",
        "abs",
        "if",
        "case",
        "coalesce",
        "tostring",
        "toint32",
        "toint64",
        "tofloat64",
        "has",
        "hasany",
        "hasall",
        "arrayjoin",
        "arrayfilter",
    ]
)
# Words that stand before a parenthesis without being functions.
_WORDS = frozenset(
    [
        "in",
        "as",
        "over",
        "and",
        "or",
        "not",
        "select",
        "from",
        "union",
        "all",
        "distinct",
        "except",
        "intersect",
        "on",
        "using",
        "by",
        "when",
        "then",
        "else",
        "case",
        "between",
        "with",
        "limit",
        "where",
        "having",
        "join",
        "is",
        "like",
        "ilike",
        "offset",
        "interval",
    ]
)
_SHAPES: frozenset[type[exp.Expr]] = frozenset(
    getattr(exp, name)
    for name in [
        "Select",
        "Union",
        "Except",
        "Intersect",
        "Subquery",
        "From",
        "Join",
        "Where",
        "Group",
        "Having",
        "Order",
        "Ordered",
        "Limit",
        "Offset",
        "Distinct",
        "With",
        "CTE",
        "TableAlias",
        "Table",
        "Column",
        "Identifier",
        "Star",
        "Literal",
        "Boolean",
        "Null",
        "Alias",
        "Paren",
        "Tuple",
        "Array",
        "And",
        "Or",
        "Not",
        "EQ",
        "NEQ",
        "GT",
        "GTE",
        "LT",
        "LTE",
        "Is",
        "In",
        "Between",
        "Like",
        "ILike",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "IntDiv",
        "Mod",
        "Neg",
        "Case",
        "If",
        "Interval",
        "Var",
        "Lambda",
        "JSONPath",
        "JSONPathRoot",
        "JSONPathKey",
        "JSONPathSubscript",
        "Bracket",
    ]
    if hasattr(exp, name)
)
_UNNAMED = tuple(
    getattr(exp, name)
    for name in [
        "Anonymous",
        "AnonymousAggFunc",
        "ParameterizedAgg",
        "CombinedAggFunc",
        "CombinedParameterizedAgg",
    ]
    if hasattr(exp, name)
)
_SELECT_PARTS = frozenset(
    [
        "with",
        "with_",
        "expressions",
        "from",
        "from_",
        "where",
        "group",
        "having",
        "order",
        "limit",
        "offset",
        "distinct",
        "joins",
        "kind",
    ]
)
_TABLE_PARTS = frozenset({"this", "alias"})
_JOIN_KINDS = frozenset({"", "INNER", "OUTER", "CROSS", "SEMI", "ANTI"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_ ]{0,127}\Z")
_HIDDEN_NAMES = frozenset({source.table for source in SOURCES.values()} | set(SOURCES))
_OWN = "own"
# What the parser raises at texts that its authors did not think of.
_UNREADABLE = (SqlglotError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError)
_AMBIGUOUS = "The query cannot be read unambiguously. Please write it more plainly."


@dataclass(frozen=True, slots=True)
class Scope:
    """What a caller may see.

    Args:
        workspace_id: whose rows.
        sources: the tables by their public names.
        retention_days: how old rows may be.
        only: values of a table's scope column; None: all.
        rows: most rows of the answer.
        database: where the tables are.
    """

    workspace_id: str
    sources: Mapping[str, Source]
    retention_days: int
    only: Sequence[str] | None = None
    rows: int = MOST_ROWS
    database: str = DATABASE


def confine(query: str, scope: Scope) -> str:
    """Return the query as it may be run.

    Args:
        query: what the customer wrote.
        scope: what the customer may see.

    Raises:
        InvalidAnalyticsQuery, InvalidAnalyticsQueryType, InvalidAnalyticsTable, InvalidAnalyticsFunction,
        QueryRangeExceedsRetention: it is refused, and the detail says why.
    """
    try:
        tree = _parsed(query)
        _check(tree, scope)
        _confine_tables(tree, scope)
        limited = _limited(tree, scope.rows)
        text = limited.sql(dialect="clickhouse", comments=False)
        _check_text(text, limited, scope)
    except RecursionError:
        raise InvalidAnalyticsQuery("The query is nested too deeply. Please simplify it.") from None
    except _UNREADABLE:  # not the query's text, which was read: what it became
        raise InvalidAnalyticsQuery(_AMBIGUOUS) from None
    return text


def _parsed(query: str) -> exp.Expr:
    if len(query.encode("utf-8", "replace")) > LONGEST:
        raise InvalidAnalyticsQuery(f"The query is longer than {LONGEST} bytes. Please shorten it.")
    if "\0" in query:
        raise InvalidAnalyticsQuery("The query has a character that cannot be part of one.")
    try:
        statements = [each for each in sqlglot.parse(query, dialect="clickhouse") if each is not None]
    except _UNREADABLE as error:
        raise InvalidAnalyticsQuery(f"The query has invalid SQL syntax{_place(error)}.") from None
    if not statements:
        raise InvalidAnalyticsQuery("The query is empty. Please write one SELECT.")
    if len(statements) > 1:
        raise InvalidAnalyticsQueryType("Only one statement is allowed. Please send one SELECT.")
    tree = statements[0]
    while isinstance(tree, exp.Subquery) and set(_given(tree)) == {"this"}:
        tree = tree.this
    if not isinstance(tree, exp.Select | exp.SetOperation):
        raise InvalidAnalyticsQueryType("Only SELECT queries are allowed.")
    return tree


def _place(error: Exception) -> str:
    found = getattr(error, "errors", None)
    if found and found[0].get("line"):
        return f" at line {found[0]['line']}, column {found[0]['col']}"
    return ""


def _given(node: exp.Expr) -> Iterator[str]:
    """Yield the names of a node's parts that are there."""
    for name, value in node.args.items():
        if value is not None and value is not False and value != [] and value != "":
            yield name


# What is allowed


def _check(tree: exp.Expr, scope: Scope) -> None:
    for number, node in enumerate(tree.walk()):
        if number >= MOST_NODES:
            raise InvalidAnalyticsQuery(f"The query has more than {MOST_NODES} parts. Please simplify it.")
        _check_node(node, scope)
    _check_retention(tree, scope)


def _check_node(node: exp.Expr, scope: Scope) -> None:
    kind = type(node)
    if isinstance(node, exp.Table):
        return _check_table(node, scope)
    if isinstance(node, exp.Select):
        return _check_select(node)
    if isinstance(node, exp.Join):
        return _check_join(node)
    if isinstance(node, exp.CTE):
        return _check_cte(node)
    if isinstance(node, exp.Identifier):
        if not _NAME.match(node.name):
            raise InvalidAnalyticsQuery(
                f"The name {node.name[:64]!r} cannot be used; names have letters, digits, spaces and '_'."
            )
        return None
    if isinstance(node, exp.Column):
        if node.args.get("db") is not None or node.args.get("catalog") is not None:
            raise InvalidAnalyticsTable("Columns are named by their table's alias alone.")
        return None
    if isinstance(node, exp.Star):
        if list(_given(node)):
            raise InvalidAnalyticsQuery("'*' cannot be changed by EXCEPT, REPLACE or APPLY.")
        return None
    if isinstance(node, exp.In):
        if node.args.get("field") is not None or node.args.get("unnest") is not None:
            raise InvalidAnalyticsTable("IN takes a list of values or a subquery, not the name of a table.")
        if node.args.get("is_global"):
            raise InvalidAnalyticsQuery("GLOBAL IN is not allowed.")
        # A lone name in parentheses may be a table's, too.
        if any(each.find(exp.Column, exp.Dot) is not None for each in node.expressions):
            raise InvalidAnalyticsTable("IN takes a list of values or a subquery, not names.")
        return None
    if isinstance(node, exp.With):
        if node.args.get("recursive"):
            raise InvalidAnalyticsQuery("WITH RECURSIVE is not allowed.")
        return None
    if isinstance(node, exp.Limit):
        return _check_limit(node)
    if isinstance(node, exp.Ordered) and node.args.get("with_fill") is not None:
        raise InvalidAnalyticsQuery("WITH FILL is not allowed.")
    if isinstance(node, exp.Group) and not set(_given(node)) <= {"expressions"}:
        raise InvalidAnalyticsQuery("GROUP BY takes a list of expressions only.")
    if isinstance(node, exp.Distinct) and node.args.get("on") is not None:
        raise InvalidAnalyticsQuery("DISTINCT ON is not allowed.")
    if isinstance(node, exp.SetOperation) and not set(_given(node)) <= {
        *("this", "expression", "distinct", "with", "with_", "order", "limit", "offset"),
    }:
        raise InvalidAnalyticsQuery("The query uses a form of UNION that is not allowed.")
    if isinstance(node, exp.Subquery) and not set(_given(node)) <= {"this", "alias", "with", "with_"}:
        raise InvalidAnalyticsQuery("A subquery takes an alias only.")
    if isinstance(node, _UNNAMED):
        return _check_name(node.name)
    if kind in _SHAPES or kind in _allowed_functions():
        return None
    if isinstance(node, exp.Func):
        return _check_name(_name_of(node))
    raise InvalidAnalyticsQuery(
        f"The query uses {_words_of(kind)}, which is not allowed in analytics queries."
    )


def _words_of(kind: type[exp.Expr]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).upper()


def _name_of(node: exp.Func) -> str:
    return node.sql(dialect="clickhouse").partition("(")[0].strip()[:64]


def _check_name(name: str) -> None:
    if name.lower() not in FUNCTIONS:
        raise InvalidAnalyticsFunction(
            f"The function {name[:64]!r} is not allowed in analytics queries. Allowed are the usual aggregates, "
            "and functions of dates, texts, numbers and arrays; see the documentation of this error."
        )


@cache
def _allowed_functions() -> frozenset[type[exp.Expr]]:
    """Return the kinds of node that the parser makes of the allowed functions."""
    kinds: set[type[exp.Expr]] = set()
    for name in FUNCTIONS:
        for arguments in ("", "a", "a, b", "a, b, c", "x -> x, a", "'day', b"):
            try:
                tree = sqlglot.parse_one(f"SELECT {name}({arguments})", dialect="clickhouse")
            except _UNREADABLE:
                continue
            node = tree.expressions[0]
            if isinstance(node, exp.Func) and not isinstance(node, _UNNAMED):
                kinds.add(type(node))
    kinds.add(type(sqlglot.parse_one("SELECT quantile(0.5)(a)", dialect="clickhouse").expressions[0]))
    return frozenset(kinds - set(_UNNAMED) - {exp.Cast, exp.Anonymous})


def _check_select(node: exp.Select) -> None:
    if more := sorted(set(_given(node)) - _SELECT_PARTS):
        clause = more[0].rstrip("_").upper()
        raise InvalidAnalyticsQuery(f"The clause {clause} is not allowed in analytics queries.")
    if node.args.get("kind"):
        raise InvalidAnalyticsQuery("SELECT AS STRUCT is not allowed.")
    if len(node.expressions) > MOST_COLUMNS:
        raise InvalidAnalyticsQuery(f"The query selects more than {MOST_COLUMNS} columns.")


def _check_join(node: exp.Join) -> None:
    allowed = {"this", "side", "kind", "on", "using"}
    if (
        not set(_given(node)) <= allowed
        or str(node.args.get("kind") or "").upper() not in _JOIN_KINDS
        or not isinstance(node.this, exp.Table | exp.Subquery)
    ):
        raise InvalidAnalyticsQuery("Only plain joins are allowed: INNER, LEFT, RIGHT, FULL and CROSS.")


def _check_cte(node: exp.CTE) -> None:
    if not isinstance(node.this, exp.Select | exp.SetOperation):
        raise InvalidAnalyticsQuery("WITH takes subqueries: WITH name AS (SELECT ...).")
    if node.alias in _HIDDEN_NAMES:
        raise InvalidAnalyticsTable(f"WITH cannot give the name {node.alias!r} again; it is a table's.")
    alias = node.args.get("alias")
    if alias is None or not set(_given(alias)) <= {"this"} or not set(_given(node)) <= {"this", "alias"}:
        raise InvalidAnalyticsQuery("WITH takes subqueries: WITH name AS (SELECT ...).")


def _check_limit(node: exp.Limit) -> None:
    value = node.expression
    if not set(_given(node)) <= {"expression"} or not isinstance(value, exp.Literal) or value.is_string:
        raise InvalidAnalyticsQuery("LIMIT takes one number.")


def _check_table(node: exp.Table, scope: Scope) -> None:
    if not set(_given(node)) <= _TABLE_PARTS or not isinstance(node.this, exp.Identifier):
        raise InvalidAnalyticsTable(
            f"Only these tables can be asked, by their names alone: {', '.join(scope.sources)}."
        )
    name = node.name
    if name not in scope.sources and not _is_cte(node):
        raise InvalidAnalyticsTable(
            f"There is no table {name[:64]!r}. These can be asked: {', '.join(scope.sources)}."
        )
    alias = node.args.get("alias")
    if alias is not None and not set(_given(alias)) <= {"this"}:
        raise InvalidAnalyticsTable("A table's alias is one name.")


def _is_cte(table: exp.Table) -> bool:
    """Say whether a name is that of a CTE which is in sight: of a query around it, defined before it."""
    node: exp.Expr = table
    while (above := node.parent) is not None:
        if isinstance(above, exp.With):
            defined = above.expressions
            place = next(index for index, each in enumerate(defined) if each is node)
            if any(each.alias == table.name for each in defined[:place]):
                return True
        else:
            clause = above.args.get("with_") or above.args.get("with")
            if (
                clause is not None
                and clause is not node
                and any(each.alias == table.name for each in clause.expressions)
            ):
                return True
        node = above
    return False


# Retention


def _check_retention(tree: exp.Expr, scope: Scope) -> None:
    """Refuse a query whose own lower bound of `time` lies before what may be seen."""
    oldest = clock.now_ms() - (scope.retention_days + 1) * 86_400_000
    for node in tree.find_all(exp.GT, exp.GTE, exp.LT, exp.LTE, exp.EQ, exp.Between):
        if isinstance(node, exp.Between):
            column, bound = node.this, node.args["low"]
        elif isinstance(node, exp.LT | exp.LTE):
            column, bound = node.expression, node.this
        else:
            column, bound = node.this, node.expression
            if isinstance(node, exp.EQ) and isinstance(bound, exp.Column):
                column, bound = bound, column
        if isinstance(column, exp.Column) and column.name == "time":
            moment = _moment(bound)
            if moment is not None and moment < oldest:
                raise QueryRangeExceedsRetention(
                    f"The query asks for events before the {scope.retention_days} days that are kept for this "
                    "workspace. Please ask for a later time."
                )


_UNITS = {
    **{"second": 1000, "minute": 60_000, "hour": 3_600_000, "day": 86_400_000, "week": 604_800_000},
    **{"month": 30 * 86_400_000, "quarter": 91 * 86_400_000, "year": 365 * 86_400_000},
}


def _moment(node: Any) -> int | None:
    """Return what a constant expression says, in Unix milliseconds; None: it says something else."""
    if isinstance(node, exp.Paren):
        return _moment(node.this)
    if isinstance(node, exp.Literal):
        return _literal_moment(node)
    if isinstance(node, exp.Sub):
        moment, away = _moment(node.this), _span(node.expression)
        return None if moment is None or away is None else moment - away
    if isinstance(node, exp.Func) and not isinstance(node, exp.And | exp.Or):
        name = _name_of(node).lower()
        if name in ("now", "now64", "today"):
            return clock.now_ms()
        inside = [each for each in node.iter_expressions() if not isinstance(each, exp.DataType | exp.Var)]
        if (
            name.startswith(("todate", "tounixtimestamp64milli", "fromunixtimestamp64milli", "tostartof"))
            and inside
        ):
            return _moment(inside[0])
        if name in ("toint64", "datetrunc") and inside:
            return _moment(inside[-1])
    return None


def _literal_moment(node: exp.Literal) -> int | None:
    if node.is_string:
        try:
            moment = datetime.fromisoformat(node.name)
        except ValueError:
            return None
        return clock.to_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    try:
        number = float(node.name)
    except ValueError:
        return None
    # Seconds where they can be nothing else: fifty years of milliseconds are more.
    return int(number) if abs(number) >= 1e11 else int(number * 1000)


def _span(node: Any) -> int | None:
    if isinstance(node, exp.Paren):
        return _span(node.this)
    if isinstance(node, exp.Interval):
        unit = str(node.args.get("unit") or "").lower().rstrip("s")
        count = node.this
    elif isinstance(node, exp.Func) and _name_of(node).lower().startswith("tointerval"):
        unit = _name_of(node).lower().removeprefix("tointerval")
        count = next(iter(node.iter_expressions()), None)
    elif isinstance(node, exp.Literal) and not node.is_string:
        return int(float(node.name))
    else:
        return None
    if unit not in _UNITS or not isinstance(count, exp.Literal):
        return None
    try:
        return int(float(count.name) * _UNITS[unit])
    except (ValueError, OverflowError):
        return None


# What is put in


def _confine_tables(tree: exp.Expr, scope: Scope) -> None:
    """Replace each mention of a table by the caller's own rows of it."""
    for table in list(tree.find_all(exp.Table)):
        source = scope.sources.get(table.name)
        if source is None:
            continue  # a CTE, which is made of such tables
        name = table.alias or source.alias
        table.replace(
            exp.Subquery(this=_rows_of(source, scope), alias=exp.TableAlias(this=exp.to_identifier(name)))
        )


def _rows_of(source: Source, scope: Scope) -> exp.Select:
    workspace = exp.Literal.string(scope.workspace_id)
    conditions = [
        exp.EQ(this=_own("workspace_id"), expression=workspace),
        _recent(source, scope.retention_days),
    ]
    if source.scope and scope.only is not None:
        allowed = [exp.Literal.string(value) for value in scope.only]
        conditions.append(exp.In(this=_own(source.scope), expressions=allowed) if allowed else exp.false())
    select = exp.select(*(_own(name) for name in source.columns))
    return select.from_(exp.table_(source.table, db=scope.database, alias=_OWN)).where(*conditions)


def _own(name: str) -> exp.Column:
    # Named with their table: no alias of the customer's can be meant instead.
    return exp.column(name, table=_OWN)


def _recent(source: Source, days: int) -> exp.Expr:
    oldest = clock.now_ms() - days * 86_400_000
    bound: exp.Expr = exp.Literal.number(oldest)
    if source.time != "ms":
        function, shape = (
            ("toDateTime", "%Y-%m-%d %H:%M:%S") if source.time == "datetime" else ("toDate", "%Y-%m-%d")
        )
        moment = exp.Literal.string(clock.from_ms(oldest).strftime(shape))
        bound = exp.Anonymous(this=function, expressions=[moment])
    return exp.GTE(this=_own("time"), expression=bound)


def _limited(tree: exp.Expr, rows: int) -> exp.Select:
    """Return the query with no more rows than this in its answer."""
    if isinstance(tree, exp.Select):
        given = tree.args.get("limit")
        asked = int(float(given.expression.name)) if given is not None else rows
        return tree.limit(min(asked, rows))
    # The LIMIT of a UNION would be its last SELECT's.
    inner = exp.Subquery(this=tree, alias=exp.TableAlias(this=exp.to_identifier("answer")))
    return exp.select("*").from_(inner).limit(rows)


# What is run


def _check_text(text: str, tree: exp.Expr, scope: Scope) -> None:
    """Read the text that is to be run once more: it must mean the tree, and call nothing but what is allowed."""
    again = sqlglot.parse_one(text, dialect="clickhouse")
    if again.sql(dialect="clickhouse") != text or _constants(again) != _constants(tree):
        raise InvalidAnalyticsQuery(_AMBIGUOUS)
    allowed = {(scope.database, source.table) for source in scope.sources.values()}
    for table in again.find_all(exp.Table):
        if (table.db, table.name) not in allowed and not (not table.db and _is_cte(table)):
            raise InvalidAnalyticsTable(f"There is no table {table.name[:64]!r}.")
    tokens = sqlglot.tokenize(text, dialect="clickhouse")
    for token, following in pairwise(tokens):
        called = following.token_type is TokenType.L_PAREN and re.fullmatch(r"\w+", token.text)
        if called and token.token_type is not TokenType.NUMBER and token.token_type is not TokenType.STRING:
            word = token.text.lower()
            if word not in FUNCTIONS and word not in _WORDS:
                raise InvalidAnalyticsFunction(f"The function {token.text[:64]!r} is not allowed.")


def _constants(tree: exp.Expr) -> list[str]:
    return sorted(node.name for node in tree.find_all(exp.Literal) if node.is_string)
