// pgjdbc: the simple protocol by preferQueryMode, the extended one as it is by default, and with statements prepared.
import java.nio.file.*;
import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.largeobject.*;
import org.postgresql.util.PSQLException;

public class Doors {
    record Door(String kind, String login, String name, String begin, String end, String endValue) {}

    static final List<Door> ALL = new ArrayList<>();
    // direct, or how pgbouncer hands connections on: session, transaction
    static final String VIA = System.getenv().getOrDefault("VIA", "direct");
    static final String WITNESS = "SELECT current_user || ' of ' || session_user";

    static List<Door> doors(String login, String kind) {
        return ALL.stream().filter(door -> door.login.equals(login) && door.kind.equals(kind)).toList();
    }

    static void told(String name, List<Object> found, List<Object> wanted) {
        System.out.println(found.equals(wanted) ? "ok " + name : "not ok " + name + ": " + found);
    }

    static List<Object> thereAndBack(String login) {
        return new ArrayList<>(List.of("bob of " + login, login + " of " + login));
    }

    static Object value(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    static Object user(Connection connection) throws SQLException {
        return value(connection, WITNESS);
    }

    static Object pid(Connection connection) throws SQLException {
        return value(connection, "SELECT pg_backend_pid()");
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static Connection connect(String login, String more) throws SQLException {
        // A pooler that hands a connection on between transactions doesn't know of prepared statements.
        String threshold = VIA.equals("transaction") ? "&prepareThreshold=0" : "";
        return DriverManager.getConnection(System.getenv("JDBC_URL") + "&user=" + login + threshold + more);
    }

    interface Work {
        void on(List<Object> found) throws SQLException;
    }

    static void door(String name, String login, Work work) {
        List<Object> found = new ArrayList<>();
        try {
            work.on(found);
        } catch (SQLException error) {
            found.add(error.getMessage());
        }
        told(name, found, thereAndBack(login));
    }

    static void lasting(Connection connection, String login, String protocol) {
        for (Door door : doors(login, "session")) {
            door(door.name + ", " + protocol, login, found -> {
                run(connection, door.begin);
                found.add(user(connection));
                run(connection, door.end);
                found.add(user(connection));
            });
        }
    }

    static void local(Connection connection, String login, String protocol) throws SQLException {
        connection.setAutoCommit(false);
        for (Door door : doors(login, "local")) {
            door(door.name + ", " + protocol, login, found -> {
                run(connection, door.begin);
                found.add(user(connection));
                connection.commit();
                found.add(user(connection));
                connection.commit();
            });
        }
        connection.setAutoCommit(true);
    }

    static void parameter(Connection connection, String sql, String value) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql.replace("$1", "?"))) {
            statement.setString(1, value);
            statement.execute();
        }
    }

    static void parameters(Connection connection, String login) {
        for (Door door : doors(login, "parameter")) {
            door(door.name, login, found -> {
                parameter(connection, door.begin, "bob");
                found.add(user(connection));
                parameter(connection, door.end, door.endValue.equals("\\N") ? null : door.endValue);
                found.add(user(connection));
            });
        }
    }

    // Many statements in one go, which the driver sends without waiting for each. None that gives rows may be among them.
    static void batch(Connection connection, String login, String protocol) {
        for (Door door : doors(login, "session").stream().filter(door -> !door.begin.startsWith("SELECT")).toList()) {
            door(door.name + ", batch, " + protocol, login, found -> {
                try (Statement statement = connection.createStatement()) {
                    for (String sql : List.of(door.begin, "INSERT INTO seen (who) " + WITNESS, door.end,
                            "INSERT INTO seen (who) " + WITNESS)) {
                        statement.addBatch(sql);
                    }
                    statement.executeBatch();
                }
                try (Statement statement = connection.createStatement();
                        ResultSet rows = statement.executeQuery("SELECT who FROM seen ORDER BY number")) {
                    while (rows.next()) {
                        found.add(rows.getString(1));
                    }
                }
                run(connection, "TRUNCATE seen");
            });
        }
    }

    // Calls of functions by the protocol, which are no statements.
    static void largeObject(Connection connection) {
        door("large object", "alice", found -> {
            connection.setAutoCommit(false);
            run(connection, "SELECT setuser('bob')");
            LargeObjectManager manager = connection.unwrap(PGConnection.class).getLargeObjectAPI();
            long number = manager.createLO();
            LargeObject object = manager.open(number);
            object.write("of bob".getBytes());
            object.close();
            connection.commit();
            found.add(value(connection, "SELECT lomowner::regrole || ' of ' || session_user FROM "
                    + "pg_largeobject_metadata WHERE oid = " + number));
            run(connection, "SELECT lo_unlink(" + number + ")");
            run(connection, "SELECT setuser()");
            connection.commit();
            connection.setAutoCommit(true);
            found.add(user(connection));
        });
    }

    static void refused(Connection connection, String name, String sql, String sqlstate, String hint)
            throws SQLException {
        List<Object> found = new ArrayList<>();
        Object before = user(connection);
        try {
            run(connection, sql);
        } catch (PSQLException error) {
            String said = String.valueOf(error.getServerErrorMessage().getHint());
            found.addAll(List.of(error.getSQLState(), said.contains(hint), user(connection).equals(before)));
        }
        told(name, found, List.of(sqlstate, true, true));
    }

    // One client goes away in the midst of it, and the next gets its connection, of which the pool has one.
    static void handedOn(String login) throws SQLException {
        boolean session = VIA.equals("session");
        for (Door door : doors(login, session ? "session" : "local")) {
            List<Object> found = new ArrayList<>();
            Connection first = connect(login, "");
            first.setAutoCommit(session);
            run(first, door.begin);
            found.add(user(first));
            Object before = pid(first);
            first.abort(Runnable::run);
            try (Connection second = connect(login, "")) {
                found.add(user(second));
                found.add(pid(second).equals(before) == session);
            }
            List<Object> wanted = thereAndBack(login);
            wanted.add(true);
            told(door.name + ", the next client", found, wanted);
        }
    }

    static void twoAtOnce(String login) throws SQLException {
        try (Connection one = connect(login, ""); Connection other = connect(login, "")) {
            List<Object> found = new ArrayList<>(List.of(pid(one).equals(pid(other))));
            List<Object> wanted = new ArrayList<>(List.of(true));
            one.setAutoCommit(false);
            for (Door door : doors(login, "local")) {
                for (int turn = 0; turn < 3; turn++) {
                    run(one, door.begin);
                    found.add(user(one));
                    one.commit();
                    found.add(user(other));
                    wanted.addAll(thereAndBack(login));
                }
            }
            told("two clients by turns, " + login, found, wanted);
        }
    }

    static void startUp() {
        List<Object> found = new ArrayList<>();
        try (Connection connection = connect("alice", "&options=-c%20impersonate.target=bob")) {
            found.add(user(connection));
            run(connection, "SET impersonate.target = ''");
            found.add(user(connection));
        } catch (SQLException error) {
            found.add(error.getMessage().contains("unsupported startup parameter"));
        }
        told("start-up option", found, VIA.equals("direct") ? thereAndBack("alice") : List.of(true));
    }

    public static void main(String[] arguments) throws Exception {
        List<String> lines = Files.readAllLines(Path.of(arguments[0]));
        for (String line : lines.subList(1, lines.size())) {
            String[] column = line.split("\t", -1);
            ALL.add(new Door(column[0], column[1], column[2], column[4], column[6], column[7]));
        }
        for (String login : List.of("alice", "tool")) {
            for (String protocol : List.of("simple", "extended", "extendedCacheEverything")) {
                try (Connection connection = connect(login, "&preferQueryMode=" + protocol)) {
                    local(connection, login, protocol);
                    if (VIA.equals("transaction")) {
                        for (Door door : doors(login, "session")) {
                            refused(connection, door.name + ", " + protocol + ", refused", door.begin, "55000",
                                    "local => true");
                        }
                    } else {
                        lasting(connection, login, protocol);
                        batch(connection, login, protocol);
                    }
                    if (!VIA.equals("transaction") && protocol.equals("extended")) {
                        parameters(connection, login);
                        if (login.equals("alice")) {
                            largeObject(connection);
                        }
                    }
                    String wrong = login.equals("alice") ? "SELECT setuser('carol', local => true)"
                            : "SET LOCAL ROLE carol";
                    refused(connection, "a refusal of " + login + ", " + protocol, wrong, "42501",
                            "GRANT \"SET USER\" (carol)");
                }
            }
            if (!VIA.equals("direct")) {
                handedOn(login);
            }
            if (VIA.equals("transaction")) {
                twoAtOnce(login);
            }
        }
        startUp();
    }
}
