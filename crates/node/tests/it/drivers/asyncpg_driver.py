"""What users of asyncpg do. The place comes from libpq's variables; each check prints its name when it holds."""

import asyncio
import io

import asyncpg


async def prepared(conn):
    statement = await conn.prepare("select $1::int + 1, v from items where id = $2")
    for n in range(20):
        assert tuple(await statement.fetchrow(n, 1)) == (n + 1, "one")
    async with conn.transaction():
        assert await statement.fetchval(7, 1) == 8
    # What asyncpg prepares by itself and keeps.
    for n in range(20):
        assert await conn.fetchval("select $1::text", str(n)) == str(n)
    async with conn.transaction():
        rows = [row["n"] async for row in conn.cursor("select generate_series(1, 500) as n", prefetch=50)]
    assert len(rows) == 500


async def copy(conn):
    await conn.execute("create temp table copied (id int, v text)")
    rows = [(n, f"row {n}") for n in range(10_000)]
    await conn.copy_records_to_table("copied", records=rows)
    out = io.BytesIO()
    await conn.copy_from_query("select * from copied", output=out)
    assert out.getvalue().count(b"\n") == 10_000
    try:
        await conn.copy_to_table("copied", source=io.BytesIO(b"not a number\tx\n"))
        raise AssertionError("a bad row was taken")
    except asyncpg.InvalidTextRepresentationError:
        pass
    assert await conn.fetchval("select count(*) from copied") == 10_000


async def cancel(conn):
    try:
        await asyncio.wait_for(conn.execute("select pg_sleep(30)"), 0.5)
        raise AssertionError("it was not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("select 1") == 1


async def rollback(conn):
    try:
        async with conn.transaction():
            await conn.execute("insert into items values (100, 'lost')")
            await conn.execute("select 1/0")
        raise AssertionError("the error was lost")
    except asyncpg.DivisionByZeroError:
        pass
    assert await conn.fetchval("select count(*) from items where id = 100") == 0
    # Many at once: one fails, all are undone.
    try:
        await conn.executemany("insert into items values ($1, 'many')", [(201,), (202,), (201,)])
        raise AssertionError("the error was lost")
    except asyncpg.UniqueViolationError:
        pass
    assert await conn.fetchval("select count(*) from items where v = 'many'") == 0


async def password(_conn):
    try:
        await asyncpg.connect(password="wrong")
        raise AssertionError("a wrong password was taken")
    except asyncpg.InvalidPasswordError as error:
        assert error.sqlstate == "28P01", error.sqlstate


async def settings(conn):
    await conn.execute("set search_path = elsewhere, public")
    await conn.execute("set timezone = 'Asia/Tokyo'")
    for level in ("eventual", "global", "session"):
        await conn.execute(f"set synapsedb.consistency = {level}")
        assert await conn.fetchval("show synapsedb.consistency") == level
    token = await conn.fetchval("show synapsedb.token")
    await conn.fetch(f"set synapsedb.token = '{token}'")
    assert "node 1" in await conn.fetchval("show synapsedb.last_route")
    for _ in range(10):
        assert await conn.fetchval("show search_path") == "elsewhere, public"
        assert await conn.fetchval("show timezone") == "Asia/Tokyo"
    await conn.reset()
    assert await conn.fetchval("show timezone") != "Asia/Tokyo"
    other = await asyncpg.connect(server_settings={"search_path": "from_startup", "statement_timeout": "1234"})
    assert await other.fetchval("show search_path") == "from_startup"
    assert await other.fetchval("show statement_timeout") == "1234ms"
    await other.execute("set statement_timeout = 0")
    await other.reset()
    assert await other.fetchval("show statement_timeout") == "1234ms"
    await other.close()


async def notify(conn):
    heard = asyncio.Queue()
    await conn.add_listener("asyncpg", lambda *message: heard.put_nowait(message))
    other = await asyncpg.connect()
    await other.execute("notify asyncpg, 'hello'")
    await other.close()
    message = await asyncio.wait_for(heard.get(), 20)
    assert message[2:] == ("asyncpg", "hello"), message
    await conn.reset()


async def temporary(conn):
    await conn.execute("create temp table mine (v text)")
    await conn.execute("insert into mine values ('x')")
    for _ in range(5):
        assert await conn.fetchval("select v from mine") == "x"
    other = await asyncpg.connect()
    assert await other.fetchval("select to_regclass('mine')") is None
    await other.close()


async def main():
    for check in (prepared, copy, cancel, rollback, password, settings, notify, temporary):
        conn = await asyncpg.connect()
        await check(conn)
        await conn.close()
        print(check.__name__, flush=True)


asyncio.run(main())
