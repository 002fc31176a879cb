"""What users of psycopg 3 do. The place comes from libpq's variables; each check prints its name when it holds."""

import signal
import threading
import time

import psycopg
from psycopg import errors


def connect(**more):
    return psycopg.connect(autocommit=True, **more)


def prepared(conn):
    for n in range(20):
        row = conn.execute("select %s::int + 1, v from items where id = %s", (n, 1), prepare=True).fetchone()
        assert row == (n + 1, "one"), row
    with conn.transaction():
        assert conn.execute("select %s::int + 1, v from items where id = %s", (7, 1), prepare=True).fetchone()[0] == 8


def copy(conn):
    with conn.cursor() as cur:
        cur.execute("create temp table copied (id int, v text)")
        with cur.copy("copy copied from stdin") as out:
            for n in range(10_000):
                out.write_row((n, f"row {n}"))
        with cur.copy("copy copied to stdout") as rows:
            data = b"".join(bytes(block) for block in rows)
        assert data.count(b"\n") == 10_000
        try:
            with cur.copy("copy copied from stdin") as out:
                out.write("not a number\tx\n")
            raise AssertionError("a bad row was taken")
        except errors.InvalidTextRepresentation:
            pass
        assert cur.execute("select count(*) from copied").fetchone() == (10_000,)


def cancel(conn):
    threading.Timer(0.3, conn.cancel).start()
    begin = time.monotonic()
    try:
        conn.execute("select pg_sleep(30)")
        raise AssertionError("it was not cancelled")
    except errors.QueryCanceled:
        assert time.monotonic() - begin < 10
    assert conn.execute("select 1").fetchone() == (1,)


def pipeline(conn):
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (n,)) for n in range(200)]
    assert [cur.fetchone()[0] for cur in cursors] == list(range(200))
    try:
        with conn.pipeline():
            conn.execute("select 1")
            conn.execute("select 1/0")
            conn.execute("select 2")
        raise AssertionError("the error was lost")
    except errors.DivisionByZero:
        pass
    assert conn.execute("select 3").fetchone() == (3,)


def rollback(conn):
    try:
        with conn.transaction():
            conn.execute("insert into items values (100, 'lost')")
            conn.execute("select 1/0")
        raise AssertionError("the error was lost")
    except errors.DivisionByZero:
        pass
    assert conn.execute("select count(*) from items where id = 100").fetchone() == (0,)
    with conn.transaction():
        conn.execute("insert into items values (101, 'kept')")
        try:
            with conn.transaction():
                conn.execute("insert into items values (101, 'twice')")
        except errors.UniqueViolation:
            pass
    assert conn.execute("delete from items where id = 101 returning v").fetchone() == ("kept",)


def password(_conn):
    try:
        connect(password="wrong")
        raise AssertionError("a wrong password was taken")
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error), error


def settings(conn):
    conn.execute("set search_path = elsewhere, public")
    conn.execute("set timezone = 'Asia/Tokyo'")
    for _ in range(10):
        assert conn.execute("show search_path").fetchone() == ("elsewhere, public",)
        assert conn.execute("show timezone").fetchone() == ("Asia/Tokyo",)
    assert conn.info.parameter_status("TimeZone") == "Asia/Tokyo"
    conn.execute("reset search_path")
    conn.execute("set synapsedb.report_token = on", prepare=True)
    conn.execute("insert into items values (%s, %s)", (77, "told"))
    conn.execute("delete from items where id = %s", (77,))
    token = conn.info.parameter_status("synapsedb.token")
    assert token.startswith("1="), token
    conn.execute("set synapsedb.report_token = off")
    for _ in range(3):
        conn.execute("set synapsedb.consistency = global", prepare=True)
        assert conn.execute("show synapsedb.consistency", prepare=True).fetchone() == ("global",)
        assert conn.execute("select count(*) from items").fetchone()[0] >= 1
        conn.execute("reset synapsedb.consistency", prepare=True)
    with connect(options="-c synapsedb.token=" + token) as other:
        assert other.execute("show synapsedb.token", prepare=True).fetchone()[0].startswith("1=")
    with connect(options="-c search_path=from_options", application_name="from startup") as other:
        assert other.execute("show search_path").fetchone() == ("from_options",)
        assert other.execute("show application_name").fetchone() == ("from startup",)


def notify(conn):
    conn.execute("listen psycopg")
    with connect() as other:
        other.execute("notify psycopg, 'hello'")
    signal.alarm(20)
    for message in conn.notifies():
        assert (message.channel, message.payload) == ("psycopg", "hello")
        break
    signal.alarm(0)
    conn.execute("unlisten *")


def temporary(conn):
    conn.execute("create temp table mine (v text)")
    conn.execute("insert into mine values ('x')")
    for _ in range(5):
        assert conn.execute("select v from mine").fetchone() == ("x",)
    with connect() as other:
        assert other.execute("select to_regclass('mine')").fetchone() == (None,)


for check in (prepared, copy, cancel, pipeline, rollback, password, settings, notify, temporary):
    with connect() as conn:
        check(conn)
    print(check.__name__, flush=True)
