// pgjdbc: the simple protocol by preferQueryMode, the extended one as it is by default.
import java.sql.*;
import java.util.*;

public class Doors {
    static final String[][] DOORS = {
        {"setuser()", "SELECT setuser('bob')", "SELECT setuser()"},
        {"set_config()", "SELECT set_config('impersonate.target', 'bob', false)",
            "SELECT set_config('impersonate.target', '', false)"},
        {"SET", "SET impersonate.target = 'bob'", "SET impersonate.target = ''"},
        {"RESET", "SET impersonate.target TO 'bob'", "RESET impersonate.target"},
        {"CALL", "CALL impersonate.impersonate_user('bob')", "CALL impersonate.impersonate_user(NULL)"},
    };

    static void told(String name, List<String> found) {
        boolean fine = found.equals(List.of("bob", "alice"));
        System.out.println(fine ? "ok " + name : "not ok " + name + ": " + found);
    }

    static String user(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery("SELECT current_user")) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection(System.getenv("JDBC_URL") + more);
    }

    public static void main(String[] arguments) throws Exception {
        for (String mode : new String[] {"simple", "extended"}) {
            try (Connection connection = connect("&preferQueryMode=" + mode)) {
                for (String[] door : DOORS) {
                    List<String> found = new ArrayList<>();
                    try {
                        run(connection, door[1]);
                        found.add(user(connection));
                        run(connection, door[2]);
                        found.add(user(connection));
                    } catch (SQLException error) {
                        found.add(error.getMessage());
                    }
                    told(door[0] + ", " + mode, found);
                }
            }
        }
        try (Connection connection = connect("")) {
            List<String> found = new ArrayList<>();
            try (PreparedStatement statement = connection.prepareStatement("SELECT setuser(?)")) {
                statement.setString(1, "bob");
                statement.execute();
                found.add(user(connection));
                statement.setString(1, null);
                statement.execute();
                found.add(user(connection));
            }
            told("setuser() with a parameter", found);

            found = new ArrayList<>();
            connection.setAutoCommit(false);
            run(connection, "SET LOCAL impersonate.target = 'bob'");
            found.add(user(connection));
            connection.commit();
            found.add(user(connection));
            connection.commit();
            told("SET LOCAL", found);
        }
        try (Connection connection = connect("&options=-c%20impersonate.target=bob")) {
            List<String> found = new ArrayList<>();
            found.add(user(connection));
            run(connection, "SET impersonate.target = ''");
            found.add(user(connection));
            told("start-up option", found);
        }
    }
}
