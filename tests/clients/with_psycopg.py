"""psycopg 3: simple protocol (ClientCursor), extended protocol, prepared statements, parameters."""

import psycopg
from doors import DOORS, told


def user(connection):
    return connection.execute("SELECT current_user").fetchone()[0]


for protocol, cursor in [("simple", psycopg.ClientCursor), ("extended", psycopg.Cursor)]:
    with psycopg.connect("", autocommit=True, cursor_factory=cursor) as connection:
        for name, start, end in DOORS:
            found = []
            for prepare in [None, True] if protocol == "extended" else [None]:
                try:
                    connection.execute(start, prepare=prepare) if prepare else connection.execute(start)
                    found.append(user(connection))
                    connection.execute(end)
                    found.append(user(connection))
                except psycopg.Error as error:
                    found.append(str(error))
            told(f"{name}, {protocol}", found, ["bob", "alice"] * (len(found) // 2 or 1))

with psycopg.connect("", autocommit=True) as connection:
    found = []
    connection.execute("SELECT setuser(%s)", ["bob"])
    found.append(user(connection))
    connection.execute("SELECT setuser(%s::text)", [None])
    found.append(user(connection))
    told("setuser() with a parameter", found, ["bob", "alice"])

    found = []
    with connection.transaction():
        connection.execute("SET LOCAL impersonate.target = 'bob'")
        found.append(user(connection))
    found.append(user(connection))
    told("SET LOCAL", found, ["bob", "alice"])

    try:
        connection.execute("SELECT setuser('carol')")
        found = "no refusal"
    except psycopg.errors.InsufficientPrivilege as error:
        found = (error.sqlstate, 'SET USER' in (error.diag.message_hint or ""))
    told("a refusal", found, ("42501", True))

with psycopg.connect("", autocommit=True, options="-c impersonate.target=bob") as connection:
    found = [user(connection)]
    connection.execute("SET impersonate.target = ''")
    found.append(user(connection))
    told("start-up option", found, ["bob", "alice"])
