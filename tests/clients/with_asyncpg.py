"""asyncpg: the extended protocol, and the simple one of execute() without arguments."""

import asyncio
import os

import asyncpg
from doors import DOORS, told


async def main():
    place = {"host": os.environ["PGHOST"], "port": int(os.environ["PGPORT"])}
    connection = await asyncpg.connect(**place)
    user = lambda: connection.fetchval("SELECT current_user")
    for protocol, run in [("simple", connection.execute), ("extended", connection.fetch)]:
        for name, start, end in DOORS:
            found = []
            try:
                await run(start)
                found.append(await user())
                await run(end)
                found.append(await user())
            except asyncpg.PostgresError as error:
                found.append(str(error))
            told(f"{name}, {protocol}", found, ["bob", "alice"])
    found = []
    await connection.fetch("SELECT setuser($1)", "bob")
    found.append(await user())
    await connection.fetch("SELECT setuser($1)", None)
    found.append(await user())
    told("setuser() with a parameter", found, ["bob", "alice"])
    found = []
    async with connection.transaction():
        await connection.execute("SET LOCAL impersonate.target = 'bob'")
        found.append(await user())
    found.append(await user())
    told("SET LOCAL", found, ["bob", "alice"])
    await connection.close()

    connection = await asyncpg.connect(**place, server_settings={"impersonate.target": "bob"})
    found = [await connection.fetchval("SELECT current_user")]
    await connection.execute("SET impersonate.target = ''")
    found.append(await connection.fetchval("SELECT current_user"))
    told("start-up option", found, ["bob", "alice"])
    await connection.close()


asyncio.run(main())
