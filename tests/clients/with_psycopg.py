"""psycopg 3: simple protocol, extended protocol (which it takes for parameters, and for binary results), prepared
statements, and parameters of its own (ClientCursor)."""

import psycopg
from doors import LOGINS, VIA, WITNESS, doors, end_value, there_and_back, told


def connect(login, cursor=psycopg.Cursor, **more):
    # A pooler that hands a connection on between transactions doesn't know of prepared statements.
    threshold = None if VIA == "transaction" else 5
    return psycopg.connect(
        user=login, autocommit=True, cursor_factory=cursor, prepare_threshold=threshold, **more
    )


def user(connection):
    return connection.execute(WITNESS).fetchone()[0]


def pid(connection):
    return connection.execute("SELECT pg_backend_pid()").fetchone()[0]


def lasting(connection, login, protocol):
    for door in doors(login, "session"):
        for prepare in [None, True] if protocol == "extended" else [None]:
            found = []
            try:
                connection.execute(door.begin, prepare=prepare, binary=protocol == "extended")
                found.append(user(connection))
                connection.execute(door.end, prepare=prepare, binary=protocol == "extended")
                found.append(user(connection))
            except psycopg.Error as error:
                found.append(str(error))
            told(f"{door.name}, {'prepared' if prepare else protocol}", found, there_and_back(login))


def local(connection, login, protocol):
    for door in doors(login, "local"):
        found = []
        try:
            with connection.transaction():
                connection.execute(door.begin, binary=protocol == "extended")
                found.append(user(connection))
            found.append(user(connection))
        except psycopg.Error as error:
            found.append(str(error))
        told(f"{door.name}, {protocol}", found, there_and_back(login))


def parameters(connection, login):
    for door in doors(login, "parameter"):
        found = []
        try:
            connection.execute(door.begin.replace("$1", "%s"), ["bob"])
            found.append(user(connection))
            connection.execute(door.end.replace("$1", "%s"), [end_value(door)])
            found.append(user(connection))
        except psycopg.Error as error:
            found.append(str(error))
        told(door.name, found, there_and_back(login))


def pipelined(connection, login):
    """All sent before the first answer is read; up to a sync it is one transaction."""
    for door in doors(login, "session") + doors(login, "local"):
        found = []
        try:
            with connection.pipeline() as pipeline:
                connection.execute(door.begin)
                inside = connection.execute(WITNESS)
                if door.end:
                    connection.execute(door.end)
                else:
                    pipeline.sync()
                after = connection.execute(WITNESS)
                found = [inside.fetchone()[0], after.fetchone()[0]]
        except psycopg.Error as error:
            found.append(str(error))
        told(f"{door.name}, pipelined", found, there_and_back(login))


def refused(connection, name, statement, sqlstate, hint):
    """The refusal as the driver hands it on; and nothing has changed."""
    before = user(connection)
    try:
        connection.execute(statement)
        found = "no refusal"
    except psycopg.Error as error:
        found = (error.sqlstate, hint in (error.diag.message_hint or ""), user(connection) == before)
    told(name, found, (sqlstate, True, True))


def handed_on(login):
    """One client goes away in the midst of it, and the next gets its connection, of which the pool has one."""
    for door in doors(login, "session" if VIA == "session" else "local"):
        first = connect(login)
        if door.kind == "local":
            first.execute("BEGIN")
        first.execute(door.begin)
        found = [user(first)]
        before = pid(first)
        first.close()
        with connect(login) as second:
            found.append(user(second))
            # In the middle of a transaction, the pooler gives the connection up.
            found.append((pid(second) == before) == (VIA == "session"))
        told(f"{door.name}, the next client", found, there_and_back(login) + [True])


def two_at_once(login):
    """Two clients take turns on one connection: each transaction is its own client's."""
    with connect(login) as one, connect(login) as other:
        found = [pid(one) == pid(other)]
        for door in doors(login, "local"):
            for _ in range(3):
                with one.transaction():
                    one.execute(door.begin)
                    found.append(user(one))
                found.append(user(other))
        told(f"two clients by turns, {login}", found, [True] + there_and_back(login) * (len(found) // 2))


def start_up():
    try:
        with connect("alice", options="-c impersonate.target=bob") as connection:
            found = [user(connection)]
            connection.execute("SET impersonate.target = ''")
            found.append(user(connection))
    except psycopg.OperationalError as error:
        found = "unsupported startup parameter" in str(error)
    told("start-up option", found, there_and_back("alice") if VIA == "direct" else True)


for login in LOGINS:
    for protocol, cursor in [("simple", psycopg.ClientCursor), ("extended", psycopg.Cursor)]:
        with connect(login, cursor) as connection:
            local(connection, login, protocol)
            if VIA == "transaction":
                for door in doors(login, "session"):
                    refused(connection, f"{door.name}, {protocol}, refused", door.begin, "55000", "local => true")
            else:
                lasting(connection, login, protocol)
            if VIA != "transaction" and protocol == "extended":
                parameters(connection, login)
                pipelined(connection, login)
            statement = "SELECT setuser('carol', local => true)" if login == "alice" else "SET LOCAL ROLE carol"
            refused(connection, f"a refusal of {login}, {protocol}", statement, "42501", 'GRANT "SET USER" (carol)')
    if VIA != "direct":
        handed_on(login)
    if VIA == "transaction":
        two_at_once(login)
start_up()
