// What users of node-postgres do. The place comes from libpq's variables; each check prints its name when it holds.
'use strict';

const assert = require('assert');
const { Client, Pool } = require('pg');

async function open(more) {
    const client = new Client(more);
    await client.connect();
    return client;
}

async function code(promise) {
    try {
        await promise;
    } catch (error) {
        return error.code;
    }
    return 'no error';
}

const checks = {
    async prepared(client) {
        const query = { name: 'item', text: 'select $1::int + 1 as n, v from items where id = $2' };
        for (let n = 0; n < 20; n++) {
            const { rows } = await client.query({ ...query, values: [n, 1] });
            assert.deepStrictEqual(rows, [{ n: n + 1, v: 'one' }]);
        }
        await client.query('begin');
        assert.strictEqual((await client.query({ ...query, values: [7, 1] })).rows[0].n, 8);
        await client.query('commit');
        // A pool uses the same name on many connections.
        const pool = new Pool({ max: 5 });
        const all = [...Array(50).keys()].map((n) => pool.query({ ...query, values: [n, 1] }));
        (await Promise.all(all)).forEach(({ rows }, n) => assert.strictEqual(rows[0].n, n + 1));
        await pool.end();
    },
    async cancel(client) {
        const other = new Client();
        const running = client.query('select pg_sleep(30)');
        const { processID, secretKey } = client;
        setTimeout(() => {
            other.connection.on('connect', () => other.connection.cancel(processID, secretKey));
            other.connection.on('error', () => {});
            other.connection.connect(Number(process.env.PGPORT), process.env.PGHOST);
        }, 300);
        assert.strictEqual(await code(running), '57014');
        assert.deepStrictEqual((await client.query('select 1 as one')).rows, [{ one: 1 }]);
    },
    async rollback(client) {
        await client.query('begin');
        await client.query("insert into items values (100, 'lost')");
        assert.strictEqual(await code(client.query('select 1/0')), '22012');
        assert.strictEqual(await code(client.query('select 1')), '25P02');
        await client.query('rollback');
        const { rows } = await client.query('select count(*)::int as n from items where id = $1', [100]);
        assert.deepStrictEqual(rows, [{ n: 0 }]);
    },
    async password() {
        assert.strictEqual(await code(open({ password: 'wrong' })), '28P01');
    },
    async settings(client) {
        await client.query("set search_path = elsewhere, public; set timezone = 'Asia/Tokyo'");
        for (let n = 0; n < 10; n++) {
            assert.strictEqual((await client.query('show search_path')).rows[0].search_path, 'elsewhere, public');
            assert.strictEqual((await client.query('show timezone')).rows[0].TimeZone, 'Asia/Tokyo');
        }
        const other = await open({ options: '-c search_path=from_options', statement_timeout: 1234 });
        assert.strictEqual((await other.query('show search_path')).rows[0].search_path, 'from_options');
        assert.strictEqual((await other.query('show statement_timeout')).rows[0].statement_timeout, '1234ms');
        await other.end();
    },
    async notify(client) {
        await client.query('listen node_pg');
        const heard = new Promise((resolve) => client.once('notification', resolve));
        const other = await open();
        await other.query("notify node_pg, 'hello'");
        await other.end();
        const { channel, payload } = await heard;
        assert.deepStrictEqual([channel, payload], ['node_pg', 'hello']);
    },
    async temporary(client) {
        await client.query("create temp table mine (v text); insert into mine values ('x')");
        for (let n = 0; n < 5; n++) {
            assert.deepStrictEqual((await client.query('select v from mine')).rows, [{ v: 'x' }]);
        }
        const other = await open();
        assert.deepStrictEqual((await other.query("select to_regclass('mine') as t")).rows, [{ t: null }]);
        await other.end();
    },
};

async function main() {
    for (const [name, check] of Object.entries(checks)) {
        const client = await open();
        await check(client);
        await client.end();
        console.log(name);
    }
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
