// What users of JDBC do. The place comes from libpq's variables; each check prints its name when it holds.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Arrays;
import java.util.Properties;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;

class Jdbc {
    interface Check {
        void run(Connection connection) throws Exception;
    }

    static Connection open(String... more) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        // The second execution of a statement is by name.
        properties.setProperty("prepareThreshold", "2");
        // A read-only connection is so outside of transactions too.
        properties.setProperty("readOnlyMode", "always");
        for (int i = 0; i < more.length; i += 2) {
            properties.setProperty(more[i], more[i + 1]);
        }
        String place = System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        return DriverManager.getConnection("jdbc:postgresql://" + place, properties);
    }

    static String value(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static void same(Object found, Object expected) {
        if (!expected.equals(found)) {
            throw new AssertionError("found " + found + " instead of " + expected);
        }
    }

    static String state(Check check) throws Exception {
        try {
            check.run(null);
        } catch (SQLException error) {
            return error.getSQLState();
        }
        return "no error";
    }

    static void prepared(Connection connection) throws Exception {
        String sql = "select ? + 1, v from items where id = ?";
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int n = 0; n < 20; n++) {
                connection.setAutoCommit(n % 2 == 0);
                statement.setInt(1, n);
                statement.setInt(2, 1);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    same(rows.getInt(1), n + 1);
                    same(rows.getString(2), "one");
                }
                if (n % 2 == 1) {
                    connection.commit();
                }
            }
        }
        // A portal that is fetched from bit by bit.
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("select generate_series(1, 500)")) {
            statement.setFetchSize(50);
            int count = 0;
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    count++;
                }
            }
            same(count, 500);
        }
        connection.commit();
    }

    static void copy(Connection connection) throws Exception {
        run(connection, "create temp table copied (id int, v text)");
        StringBuilder text = new StringBuilder();
        for (int n = 0; n < 10_000; n++) {
            text.append(n).append("\trow ").append(n).append('\n');
        }
        var manager = connection.unwrap(PGConnection.class).getCopyAPI();
        same(manager.copyIn("copy copied from stdin", new StringReader(text.toString())), 10_000L);
        StringWriter out = new StringWriter();
        same(manager.copyOut("copy copied to stdout", out), 10_000L);
        same(out.toString(), text.toString());
        same(state(c -> manager.copyIn("copy copied from stdin", new StringReader("not a number\tx\n"))), "22P02");
        same(value(connection, "select count(*) from copied"), "10000");
    }

    static void cancel(Connection connection) throws Exception {
        Statement statement = connection.createStatement();
        Timer timer = new Timer(true);
        timer.schedule(new TimerTask() {
            @Override
            public void run() {
                try {
                    statement.cancel();
                } catch (SQLException error) {
                    error.printStackTrace();
                }
            }
        }, 300);
        same(state(c -> statement.execute("select pg_sleep(30)")), "57014");
        same(value(connection, "select 1"), "1");
    }

    static void pipeline(Connection connection) throws Exception {
        run(connection, "create temp table batched (id int primary key)");
        try (PreparedStatement statement = connection.prepareStatement("insert into batched values (?)")) {
            for (int n = 0; n < 1_000; n++) {
                statement.setInt(1, n);
                statement.addBatch();
            }
            same(Arrays.stream(statement.executeBatch()).sum(), 1_000);
            statement.setInt(1, 5_000);
            statement.addBatch();
            statement.setInt(1, 1);
            statement.addBatch();
            same(state(c -> statement.executeBatch()), "23505");
        }
        same(value(connection, "select count(*) from batched where id < 5000"), "1000");
    }

    static void rollback(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        run(connection, "insert into items values (100, 'lost')");
        same(state(c -> run(connection, "select 1/0")), "22012");
        same(state(c -> run(connection, "select 1")), "25P02");
        connection.rollback();
        run(connection, "insert into items values (101, 'kept')");
        var savepoint = connection.setSavepoint();
        same(state(c -> run(connection, "insert into items values (101, 'twice')")), "23505");
        connection.rollback(savepoint);
        connection.commit();
        connection.setAutoCommit(true);
        same(value(connection, "select count(*) from items where id = 100"), "0");
        same(value(connection, "delete from items where id = 101 returning v"), "kept");
    }

    static void password(Connection connection) throws Exception {
        same(state(c -> open("password", "wrong")), "28P01");
    }

    static void settings(Connection connection) throws Exception {
        connection.setSchema("elsewhere");
        run(connection, "set timezone = 'Asia/Tokyo'");
        for (String level : new String[] {"eventual", "global", "session"}) {
            run(connection, "set synapsedb.consistency = " + level);
            same(value(connection, "show synapsedb.consistency"), level);
        }
        run(connection, "set synapsedb.token = '" + value(connection, "show synapsedb.token") + "'");
        connection.setReadOnly(true);
        for (int n = 0; n < 10; n++) {
            same(value(connection, "show search_path"), "elsewhere");
            same(value(connection, "show timezone"), "Asia/Tokyo");
            same(value(connection, "show transaction_read_only"), "on");
        }
        same(state(c -> run(connection, "create table refused (v text)")), "25006");
        connection.setReadOnly(false);
        same(value(connection, "show transaction_read_only"), "off");
        try (Connection other = open("options", "-c search_path=from_options", "ApplicationName", "from startup")) {
            same(value(other, "show search_path"), "from_options");
            same(value(other, "show application_name"), "from startup");
        }
    }

    static void notify(Connection connection) throws Exception {
        run(connection, "listen jdbc");
        try (Connection other = open()) {
            run(other, "notify jdbc, 'hello'");
        }
        PGNotification[] heard = connection.unwrap(PGConnection.class).getNotifications(20_000);
        same(heard == null ? 0 : heard.length, 1);
        same(heard[0].getName() + " " + heard[0].getParameter(), "jdbc hello");
    }

    static void temporary(Connection connection) throws Exception {
        run(connection, "create temp table mine (v text)");
        run(connection, "insert into mine values ('x')");
        for (int n = 0; n < 5; n++) {
            same(value(connection, "select v from mine"), "x");
        }
        try (Connection other = open()) {
            same(value(other, "select to_regclass('mine') is null"), "t");
        }
    }

    static void check(String name, Check check) throws Exception {
        try (Connection connection = open()) {
            check.run(connection);
        }
        System.out.println(name);
    }

    public static void main(String[] arguments) throws Exception {
        check("prepared", Jdbc::prepared);
        check("copy", Jdbc::copy);
        check("cancel", Jdbc::cancel);
        check("pipeline", Jdbc::pipeline);
        check("rollback", Jdbc::rollback);
        check("password", Jdbc::password);
        check("settings", Jdbc::settings);
        check("notify", Jdbc::notify);
        check("temporary", Jdbc::temporary);
    }
}
