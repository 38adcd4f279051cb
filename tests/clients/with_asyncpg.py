"""asyncpg: the extended protocol, and the simple one of execute() without arguments."""

import asyncio
import os

import asyncpg
from doors import LOGINS, VIA, WITNESS, doors, end_value, there_and_back, told


async def connect(login, **more):
    # A pooler that hands a connection on between transactions doesn't know of prepared statements.
    cache = 0 if VIA == "transaction" else 100
    place = {"host": os.environ["PGHOST"], "port": int(os.environ["PGPORT"])}
    return await asyncpg.connect(user=login, statement_cache_size=cache, **place, **more)


async def user(connection):
    return await connection.fetchval(WITNESS)


async def pid(connection):
    return connection.get_server_pid() if VIA == "direct" else await connection.fetchval("SELECT pg_backend_pid()")


async def lasting(connection, run, login, protocol):
    for door in doors(login, "session"):
        found = []
        try:
            await run(door.begin)
            found.append(await user(connection))
            await run(door.end)
            found.append(await user(connection))
        except asyncpg.PostgresError as error:
            found.append(str(error))
        told(f"{door.name}, {protocol}", found, there_and_back(login))


async def local(connection, run, login, protocol):
    for door in doors(login, "local"):
        found = []
        try:
            async with connection.transaction():
                await run(door.begin)
                found.append(await user(connection))
            found.append(await user(connection))
        except asyncpg.PostgresError as error:
            found.append(str(error))
        told(f"{door.name}, {protocol}", found, there_and_back(login))


async def parameters(connection, login):
    for door in doors(login, "parameter"):
        found = []
        try:
            await connection.fetch(door.begin, "bob")
            found.append(await user(connection))
            await connection.fetch(door.end, end_value(door))
            found.append(await user(connection))
        except asyncpg.PostgresError as error:
            found.append(str(error))
        told(door.name, found, there_and_back(login))


async def refused(connection, run, name, statement, sqlstate, hint):
    before = await user(connection)
    try:
        await run(statement)
        found = "no refusal"
    except asyncpg.PostgresError as error:
        found = (error.sqlstate, hint in (error.hint or ""), await user(connection) == before)
    told(name, found, (sqlstate, True, True))


async def handed_on(login):
    for door in doors(login, "session" if VIA == "session" else "local"):
        first = await connect(login)
        if door.kind == "local":
            await first.execute("BEGIN")
        await first.execute(door.begin)
        found = [await user(first)]
        before = await pid(first)
        # Without a word: close() would end what it knows of first.
        first.terminate()
        second = await connect(login)
        found.append(await user(second))
        found.append((await pid(second) == before) == (VIA == "session"))
        await second.close()
        told(f"{door.name}, the next client", found, there_and_back(login) + [True])


async def two_at_once(login):
    one, other = await connect(login), await connect(login)
    found = [await pid(one) == await pid(other)]
    for door in doors(login, "local"):
        for _ in range(3):
            async with one.transaction():
                await one.fetch(door.begin)
                found.append(await user(one))
            found.append(await user(other))
    told(f"two clients by turns, {login}", found, [True] + there_and_back(login) * (len(found) // 2))
    await one.close()
    await other.close()


async def pooled(login):
    """The driver's own pool resets by RESET ALL, which leaves the identity, and keeps statements that DISCARD ALL drops."""
    place = {"host": os.environ["PGHOST"], "port": int(os.environ["PGPORT"])}
    reset = lambda connection: connection.execute("SELECT setuser()")
    async with asyncpg.create_pool(user=login, min_size=1, max_size=1, reset=reset, **place) as pool:
        for door in doors(login, "session") + doors(login, "local"):
            found = []
            async with pool.acquire() as connection:
                if door.kind == "local":
                    await connection.execute("BEGIN")
                await connection.execute(door.begin)
                found.append(await user(connection))
                if door.kind == "local":
                    await connection.execute("COMMIT")
                before = await pid(connection)
            async with pool.acquire() as connection:
                found += [await user(connection), await pid(connection) == before]
            told(f"{door.name}, the driver's pool", found, there_and_back(login) + [True])


async def start_up():
    try:
        connection = await connect("alice", server_settings={"impersonate.target": "bob"})
        found = [await user(connection)]
        await connection.execute("SET impersonate.target = ''")
        found.append(await user(connection))
        await connection.close()
    except asyncpg.PostgresError as error:
        found = "unsupported startup parameter" in str(error)
    told("start-up option", found, there_and_back("alice") if VIA == "direct" else True)


async def main():
    for login in LOGINS:
        connection = await connect(login)
        for protocol, run in [("simple", connection.execute), ("extended", connection.fetch)]:
            await local(connection, run, login, protocol)
            if VIA == "transaction":
                for door in doors(login, "session"):
                    name = f"{door.name}, {protocol}, refused"
                    await refused(connection, run, name, door.begin, "55000", "local => true")
            else:
                await lasting(connection, run, login, protocol)
            name, hint = f"a refusal of {login}, {protocol}", 'GRANT "SET USER" (carol)'
            statement = "SELECT setuser('carol', local => true)" if login == "alice" else "SET LOCAL ROLE carol"
            await refused(connection, run, name, statement, "42501", hint)
        if VIA != "transaction":
            await parameters(connection, login)
        await connection.close()
        if VIA == "direct":
            await pooled(login)
        else:
            await handed_on(login)
        if VIA == "transaction":
            await two_at_once(login)
    await start_up()


asyncio.run(main())
