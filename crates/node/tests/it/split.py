"""What a user of psycopg 3 does at the split endpoint, whose URL is the argument."""

import sys

import psycopg

COUNT = "select count(*) from split_tools.item"

with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    for n in range(2, 30):
        conn.execute("insert into split_tools.item values (%s, 0)", (n,), prepare=True)
        assert conn.execute(COUNT).fetchone() == (n,), n
    with conn.pipeline():
        first = conn.execute("select 1")
        conn.execute("insert into split_tools.item values (100, 0)")
        last = conn.execute(COUNT)
    assert (first.fetchone(), last.fetchone()) == ((1,), (30,))
    with conn.transaction():
        conn.execute("insert into split_tools.item values (101, 0)")
    with conn.cursor("on_the_server", withhold=True) as cursor:
        cursor.execute("select id from split_tools.item")
        assert len(cursor.fetchall()) == 31
    conn.read_only = True
    with conn.transaction():
        assert conn.execute(COUNT).fetchone() == (31,)
        try:
            with conn.transaction():
                conn.execute("insert into split_tools.item values (102, 0)")
            raise SystemExit("it wrote")
        except psycopg.errors.ReadOnlySqlTransaction:
            pass
    conn.read_only = None
    conn.execute("insert into split_tools.item values (102, 0)")
    assert conn.execute(COUNT).fetchone() == (32,)
print("done")
