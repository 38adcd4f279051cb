//! What a major version of Postgres changes for users (SPEC section 8): each test knows what holds before and after.

use impersonate_server_tests::{fails_with, shared, unique, Cluster};
use postgres::Client;

fn major(client: &mut Client) -> i32 {
    client
        .query_one("SELECT current_setting('server_version_num')::int / 10000", &[])
        .unwrap()
        .get(0)
}

fn admin_of(admin: &mut Client, grantee: &str) -> Option<String> {
    let sql = "SELECT admin FROM impersonate.grants WHERE grantee::text = $1";
    admin.query_opt(sql, &[&grantee]).unwrap().map(|row| row.get(0))
}

/// G3: what the grammar of 16 says with options of the grant, 15 says by function only.
#[test]
fn admin_only_is_granted_by_options_from_16_on() {
    let cluster = Cluster::start_new();
    let database = cluster.database("options");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute("CREATE ROLE x LOGIN; CREATE ROLE y LOGIN; CREATE ROLE bob LOGIN")
        .unwrap();
    let statement = "GRANT \"SET USER\" TO x WITH ADMIN TRUE, SET FALSE";
    if major(&mut admin) < 16 {
        fails_with("42601", admin.batch_execute(statement));
        admin
            .batch_execute("SELECT impersonate.grant_set_user('x', admin => 'only')")
            .unwrap();
    } else {
        admin.batch_execute(statement).unwrap();
        for refused in [
            "GRANT \"SET USER\" TO y WITH SET FALSE",
            "GRANT \"SET USER\" TO y WITH INHERIT FALSE",
            "GRANT \"SET USER\" TO y WITH ADMIN FALSE, SET FALSE",
        ] {
            fails_with("0LP01", admin.batch_execute(refused));
        }
        assert_eq!(admin_of(&mut admin, "y"), None, "refused means nothing changed");
    }
    assert_eq!(admin_of(&mut admin, "x").as_deref(), Some("only"));
    // May grant, may not use (G3), and what it grants is of use.
    let mut x = database.connect("x");
    fails_with("42501", x.simple_query("SELECT setuser('bob')"));
    x.batch_execute("GRANT \"SET USER\" (bob) TO y").unwrap();
    database.connect("y").simple_query("SELECT setuser('bob')").unwrap();
}

/// G5: `ADMIN OPTION FOR` leaves the use. From 16 on the grammar hands it over as an option with the value false.
#[test]
fn admin_option_for_takes_the_admin_option_alone() {
    let cluster = Cluster::start_new();
    let database = cluster.database("revoke");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE x LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" TO x WITH ADMIN OPTION;
             REVOKE ADMIN OPTION FOR \"SET USER\" FROM x",
        )
        .unwrap();
    assert_eq!(admin_of(&mut admin, "x").as_deref(), Some("none"));
    database.connect("x").simple_query("SELECT setuser('bob')").unwrap();
}

/// X1: whatever a version makes of SESSION AUTHORIZATION, it is refused while impersonating, for a superuser too.
#[test]
fn session_authorization_is_refused_while_impersonating() {
    let database = shared().database("session");
    let (anna, bob) = (unique("anna"), unique("bob"));
    database
        .connect("postgres")
        .batch_execute(&format!(
            "CREATE ROLE {anna} LOGIN SUPERUSER; CREATE ROLE {bob} LOGIN SUPERUSER"
        ))
        .unwrap();
    let mut client = database.connect(&anna);
    client.simple_query(&format!("SELECT setuser('{bob}')")).unwrap();
    for statement in [
        format!("SET SESSION AUTHORIZATION {anna}"),
        format!("SET LOCAL SESSION AUTHORIZATION {bob}"),
        "SET SESSION AUTHORIZATION DEFAULT".to_owned(),
        "RESET SESSION AUTHORIZATION".to_owned(),
        format!("SELECT set_config('session_authorization', '{anna}', false)"),
    ] {
        fails_with("42501", client.simple_query(&statement));
        let row = client
            .query_one("SELECT current_user::text, session_user::text", &[])
            .unwrap();
        assert_eq!(
            (row.get(0), row.get(1)),
            (bob.clone(), anna.clone()),
            "after {statement}"
        );
    }
}

/// 17 has event triggers that run at login. With the target given on the connection they run as the target (X1).
#[test]
fn login_event_triggers_run_as_the_target() {
    let cluster = Cluster::start_new();
    let database = cluster.database("login");
    let mut admin = database.connect("postgres");
    admin
        .batch_execute(
            "CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; GRANT \"SET USER\" (bob) TO anna;
             CREATE TABLE logins (who name, by name); GRANT INSERT ON logins TO PUBLIC;
             CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS
                 $$BEGIN INSERT INTO public.logins VALUES (current_user, session_user); END$$",
        )
        .unwrap();
    let trigger = "CREATE EVENT TRIGGER noted ON login EXECUTE FUNCTION note()";
    if major(&mut admin) < 17 {
        fails_with("42601", admin.batch_execute(trigger));
        return;
    }
    admin.batch_execute(trigger).unwrap();
    admin.batch_execute("ALTER EVENT TRIGGER noted ENABLE ALWAYS").unwrap();
    let mut config = cluster.config("anna", &database.name);
    let mut client = config
        .options("-c impersonate.target=bob")
        .connect(postgres::NoTls)
        .unwrap();
    let who: String = client.query_one("SELECT current_user::text", &[]).unwrap().get(0);
    assert_eq!(who, "bob");
    let seen: Vec<(String, String)> = admin
        .query("SELECT who::text, by::text FROM logins", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert_eq!(seen, [("bob".to_owned(), "anna".to_owned())]);
}
