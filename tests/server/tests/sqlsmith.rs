//! Random queries by sqlsmith, run as an impersonated role: no crash (X5), and each on record (L3).
//!
//! sqlsmith logs in by itself and cannot be told to call setuser() first, so it is given a proxy for a server. The
//! proxy lets it log in, makes the switch, and from then on hands on bytes and takes down the queries.
//!
//! - `SQLSMITH_QUERIES=20000`: more of them than in a short run
//! - `SQLSMITH_SEED=1`: others, or those of a run that failed
//! - `SQLSMITH_TARGET=superuser`: acting as a superuser
//!
//! sqlsmith is the one that `scripts/fetch-tools.sh sqlsmith` unpacks, else one in the PATH.

use impersonate_server_tests::{fetched, Cluster};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

#[test]
fn x5_l3_random_queries_crash_nothing_and_are_all_on_record() {
    // An empty one is what make has for one that was not given.
    let setting = |name, default: &str| {
        env::var(name)
            .ok()
            .filter(|value| !value.is_empty())
            .unwrap_or(default.to_owned())
    };
    let queries = setting("SQLSMITH_QUERIES", "500");
    let seed = setting("SQLSMITH_SEED", "1");
    let target = setting("SQLSMITH_TARGET", "bob");
    let cluster = Cluster::builder()
        .setting("log_line_prefix", "%e ")
        .setting("log_error_verbosity", "verbose")
        .start();
    let database = cluster.database("smith");
    let made = database.psql("postgres", OBJECTS);
    assert!(made.ok && made.stderr.is_empty(), "{}", made.stderr);
    if target == "superuser" {
        // Such a target is for superusers alone.
        database
            .connect("postgres")
            .batch_execute("ALTER ROLE anna SUPERUSER")
            .unwrap();
    }
    let proxy = Proxy::start(&cluster, &format!("SELECT setuser('{target}')"));

    // The name is longer than those that sqlsmith takes later on.
    let connection = format!(
        "host={} port={PORT} user=anna dbname={} application_name=sqlsmith_behind_a_proxy_that_switches",
        proxy.folder.display(),
        database.name
    );
    let output = Command::new(program())
        .arg(format!("--target={connection}"))
        .args([
            format!("--max-queries={queries}"),
            format!("--seed={seed}"),
            "--verbose".to_owned(),
        ])
        .stdin(Stdio::null())
        .output()
        .expect("sqlsmith can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "seed {seed}: {}\n{said}\n{}",
        output.status,
        cluster.log()
    );

    let log = cluster.log();
    for sign in ["TRAP:", "PANIC:", "terminated by signal", "FATAL:"] {
        assert!(!log.contains(sign), "seed {seed}: {}", excerpt(&log, sign));
    }
    // What should never happen. In Postgres' own code it does happen to sqlsmith, now and then.
    let internal: BTreeSet<&str> = log
        .lines()
        .filter(|line| line.starts_with("XX") && (line.contains("ERROR:") || line.contains("LOCATION:")))
        .collect();
    let ours: Vec<_> = internal.iter().filter(|line| line.contains(".rs:")).collect();
    assert!(ours.is_empty(), "seed {seed}: {internal:#?}");

    // In the order in which each connection sent them.
    let mut observer = database.connect("postgres");
    observer.batch_execute("SELECT impersonate.audit_sync()").unwrap();
    // What acts outside of the transaction has a row before it runs as well.
    let sql = "SELECT pid, statement, sqlstate, user_name, session_user_name
                 FROM impersonate.audit WHERE event = 'STATEMENT' AND detail->>'phase' IS DISTINCT FROM 'begun' ORDER BY event_id";
    let mut recorded: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    let mut states: BTreeMap<String, u32> = BTreeMap::new();
    for row in observer.query(sql, &[]).unwrap() {
        let who: (String, String) = (row.get(3), row.get(4));
        assert_eq!(who, (target.clone(), "anna".to_owned()), "seed {seed}");
        recorded.entry(row.get(0)).or_default().push(row.get(1));
        *states.entry(row.get(2)).or_default() += 1;
    }
    let sent = proxy.sent.lock().unwrap();
    let (mut all, mut failed) = (0, 0);
    for (pid, sent) in sent.iter() {
        let recorded = recorded.get(pid).map_or(&[][..], Vec::as_slice);
        for (number, text) in sent.iter().enumerate() {
            let found = recorded.get(number).map_or("nothing", String::as_str);
            let text = String::from_utf8_lossy(&impersonate_policy::redact(text.as_bytes())).into_owned();
            let (text, found) = (bare(&text), bare(found));
            // A row keeps the beginning of a long one.
            assert!(
                found == text || (text.len() > 60_000 && found.len() > 60_000 && text.starts_with(found)),
                "seed {seed}: statement {number} of {pid} is recorded as {found}\n{text}"
            );
        }
        assert_eq!(
            recorded.len(),
            sent.len(),
            "seed {seed}: more is recorded of {pid} than it sent"
        );
        all += sent.len();
    }
    for (state, count) in &states {
        failed += if state == "00000" { 0 } else { *count };
    }
    assert!(
        all as u64 > queries.parse::<u64>().unwrap(),
        "only {all} statements came through the proxy"
    );
    println!(
        "{all} statements of {} connections, {failed} of them failed: {states:?} {internal:?}",
        sent.len()
    );
}

/// A statement without what separates it from the next.
fn bare(text: &str) -> &str {
    text.trim().trim_end_matches(';').trim_end()
}

/// The lines about the first place where it says so.
fn excerpt(log: &str, sign: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let at = lines.iter().position(|line| line.contains(sign)).unwrap_or(0);
    lines[at.saturating_sub(10)..(at + 10).min(lines.len())].join("\n")
}

fn program() -> PathBuf {
    fetched("sqlsmith", &["/usr/bin/sqlsmith"])
}

/// One of everything that queries can run into.
const OBJECTS: &str = r#"
CREATE ROLE anna LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE superuser SUPERUSER LOGIN; CREATE ROLE sales;
GRANT sales TO bob, anna;
GRANT "SET USER" (bob) TO anna;
CREATE SCHEMA hr; GRANT USAGE, CREATE ON SCHEMA hr TO bob;

CREATE DOMAIN hr.email AS text CHECK (VALUE LIKE '%@%');
CREATE DOMAIN hr.salary AS numeric(12, 2) NOT NULL CHECK (VALUE >= 0);
CREATE TYPE hr.grade AS ENUM ('junior', 'senior', 'head');
CREATE TYPE hr.address AS (street text, city text, zip int);
CREATE TYPE hr.span AS RANGE (subtype = date);

CREATE TABLE hr.department (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE, budget money,
    location point, tags text[], settings jsonb DEFAULT '{}');
CREATE TABLE hr.employee (id serial PRIMARY KEY, department int REFERENCES hr.department ON DELETE CASCADE,
    name varchar(40) NOT NULL, email hr.email, grade hr.grade DEFAULT 'junior', salary hr.salary DEFAULT 0,
    home hr.address, employed hr.span, photo bytea, born date, badge uuid DEFAULT gen_random_uuid(),
    full_name text GENERATED ALWAYS AS (name || ' <' || coalesce(email::text, '') || '>') STORED);
CREATE INDEX ON hr.employee (lower(name)); CREATE INDEX ON hr.employee USING gist (employed);
CREATE TABLE hr.log (at timestamptz DEFAULT now(), who name DEFAULT current_user, what text);
CREATE TABLE hr.payment (paid date NOT NULL, employee int, amount numeric) PARTITION BY RANGE (paid);
CREATE TABLE hr.payment_old PARTITION OF hr.payment FOR VALUES FROM ('2000-01-01') TO ('2020-01-01');
CREATE TABLE hr.payment_new PARTITION OF hr.payment FOR VALUES FROM ('2020-01-01') TO ('2040-01-01')
    PARTITION BY HASH (employee);
CREATE TABLE hr.payment_new_0 PARTITION OF hr.payment_new FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE hr.payment_new_1 PARTITION OF hr.payment_new FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE hr.payment_else PARTITION OF hr.payment DEFAULT;
CREATE TABLE hr.person (name text); CREATE TABLE hr.customer (rating int CHECK (rating < 10)) INHERITS (hr.person);
CREATE UNLOGGED TABLE hr.cache (key text PRIMARY KEY, value json);

INSERT INTO hr.department (name, budget, location, tags)
    SELECT 'department ' || i, i * 1000, point(i, -i), ARRAY['a', 'b' || i] FROM generate_series(1, 10) i;
INSERT INTO hr.employee (department, name, email, grade, salary, home, employed, photo, born)
    SELECT 1 + i % 10, 'name ' || i, i || '@example.org', (ARRAY['junior', 'senior', 'head'])[1 + i % 3]::hr.grade,
        i * 10, ROW('street', 'city', i)::hr.address, hr.span('2000-01-01', date '2001-01-01' + i), 'x', date '1980-01-01' + i
    FROM generate_series(1, 100) i;
INSERT INTO hr.payment SELECT date '2010-01-01' + 50 * i, i, i * 1.5 FROM generate_series(1, 200) i;
INSERT INTO hr.customer SELECT 'customer ' || i, i % 10 FROM generate_series(1, 20) i;

ALTER TABLE hr.employee ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON hr.employee USING (current_user = 'bob' AND id % 2 = 0) WITH CHECK (salary < 5000);
ALTER TABLE hr.payment_old ENABLE ROW LEVEL SECURITY; ALTER TABLE hr.payment_old FORCE ROW LEVEL SECURITY;
CREATE POLICY half ON hr.payment FOR SELECT USING (pg_has_role('sales', 'USAGE') AND employee % 2 = 1);
ALTER TABLE hr.payment ENABLE ROW LEVEL SECURITY;

CREATE FUNCTION hr.raise(employee int, by numeric) RETURNS numeric LANGUAGE plpgsql AS $$
DECLARE now numeric;
BEGIN
    UPDATE hr.employee e SET salary = salary + by WHERE e.id = employee RETURNING salary INTO now;
    RETURN now;
EXCEPTION WHEN check_violation OR not_null_violation THEN RETURN -1;
END $$;
CREATE FUNCTION hr.head_count(int) RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE
    AS 'SELECT count(*) FROM hr.employee WHERE department = $1';
CREATE FUNCTION hr.everybody() RETURNS SETOF hr.employee LANGUAGE sql SECURITY DEFINER STABLE
    SET search_path = pg_catalog AS 'SELECT * FROM hr.employee';
CREATE FUNCTION hr.as_sales() RETURNS text LANGUAGE sql PARALLEL SAFE SET role = 'sales' AS 'SELECT current_user::text';
CREATE FUNCTION hr.try_setuser(text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN RETURN setuser($1); EXCEPTION WHEN OTHERS THEN RETURN sqlstate; END $$;
CREATE FUNCTION hr.try_role(text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN EXECUTE format('SET ROLE %I', $1); RETURN current_user; EXCEPTION WHEN OTHERS THEN RETURN sqlstate; END $$;
CREATE FUNCTION hr.reset() RETURNS text LANGUAGE plpgsql AS $$
BEGIN RESET ROLE; RESET ALL; RETURN current_user; END $$;
CREATE AGGREGATE hr.product(numeric) (sfunc = numeric_mul, stype = numeric, initcond = 1);
CREATE OPERATOR hr.=~= (function = textregexeq, leftarg = text, rightarg = text);
CREATE FUNCTION hr.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO hr.log (what) VALUES (tg_op || ' ' || tg_table_name); RETURN coalesce(new, old); END $$;
CREATE TRIGGER note BEFORE INSERT OR UPDATE OR DELETE ON hr.employee FOR EACH ROW EXECUTE FUNCTION hr.note();
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON hr.payment FOR EACH ROW EXECUTE FUNCTION hr.note();
CREATE CONSTRAINT TRIGGER later AFTER INSERT ON hr.department DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION hr.note();

CREATE VIEW hr.seniors AS SELECT id, name, salary FROM hr.employee WHERE grade > 'junior' WITH CHECK OPTION;
CREATE VIEW hr.paid WITH (security_barrier) AS
    SELECT name, sum(amount) AS total FROM hr.employee JOIN hr.payment ON employee = id GROUP BY name;
CREATE VIEW hr.who AS SELECT current_user, session_user, current_setting('role') AS role;
CREATE MATERIALIZED VIEW hr.totals AS SELECT department, hr.product(salary) AS product FROM hr.employee GROUP BY 1;
CREATE RULE quietly AS ON DELETE TO hr.paid DO INSTEAD NOTHING;
CREATE VIEW hr.acting AS SELECT * FROM impersonate.active;
GRANT ALL ON ALL TABLES IN SCHEMA hr TO bob; GRANT ALL ON ALL SEQUENCES IN SCHEMA hr TO bob;
REVOKE UPDATE, DELETE ON hr.log FROM bob; REVOKE SELECT ON hr.department FROM bob;
GRANT SELECT (id, name) ON hr.department TO bob;
ALTER TABLE hr.cache OWNER TO bob; ALTER VIEW hr.seniors OWNER TO bob; ALTER FUNCTION hr.everybody OWNER TO bob;
ANALYZE;
"#;

// -------------------------------------------------------------------------------------------------------- the proxy ---

/// Names the socket, whoever listens to it.
const PORT: u16 = 5432;

struct Proxy {
    folder: PathBuf,
    /// What each connection has sent, by the pid of its backend.
    sent: Arc<Mutex<BTreeMap<i32, Vec<String>>>>,
}

impl Proxy {
    /// Every connection begins with `first`, and fails where that does.
    fn start(cluster: &Cluster, first: &str) -> Proxy {
        let folder = cluster.host().join("proxy");
        fs::create_dir(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(format!(".s.PGSQL.{PORT}"))).unwrap();
        let server = cluster.host().join(format!(".s.PGSQL.{}", cluster.port()));
        let sent = Arc::new(Mutex::new(BTreeMap::new()));
        let (first, all_sent) = (first.to_owned(), Arc::clone(&sent));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (server, first, sent) = (server.clone(), first.clone(), Arc::clone(&all_sent));
                thread::spawn(move || {
                    // A connection that ends is no failure of the proxy.
                    let _ = serve(client?, &server, &first, &sent);
                    io::Result::Ok(())
                });
            }
        });
        Proxy { folder, sent }
    }
}

fn serve(
    mut client: UnixStream,
    server: &Path,
    first: &str,
    sent: &Mutex<BTreeMap<i32, Vec<String>>>,
) -> io::Result<()> {
    let mut server = UnixStream::connect(server)?;
    // The start-up packet, or a request to cancel, has no type.
    let start = read_body(&mut client)?;
    server.write_all(&start)?;
    let pid = log_in(&mut client, &mut server, first)?;

    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let mut kind = [0];
    while client.read_exact(&mut kind).is_ok() {
        let body = read_body(&mut client)?;
        let text = match kind[0] {
            b'Q' => Some(&body[4..body.len() - 1]),
            // The name of the statement comes first.
            b'P' => body[4..].split(|byte| *byte == 0).nth(1),
            _ => None,
        };
        if let Some(text) = text {
            sent.lock()
                .unwrap()
                .entry(pid)
                .or_default()
                .push(String::from_utf8_lossy(text).into_owned());
        }
        server.write_all(&kind)?;
        server.write_all(&body)?;
    }
    server.shutdown(Shutdown::Both)
}

/// Hands on the log-in, and makes the switch before the client is told that the server is ready.
fn log_in(client: &mut UnixStream, server: &mut UnixStream, first: &str) -> io::Result<i32> {
    let mut pid = 0;
    let mut switching = false;
    loop {
        let mut kind = [0];
        server.read_exact(&mut kind)?;
        let body = read_body(server)?;
        match kind[0] {
            b'K' => pid = i32::from_be_bytes(body[4..8].try_into().unwrap()),
            b'Z' if !switching => {
                switching = true;
                server.write_all(b"Q")?;
                server.write_all(&(first.len() as u32 + 5).to_be_bytes())?;
                server.write_all(first.as_bytes())?;
                server.write_all(&[0])?;
                continue;
            }
            b'E' if switching => {
                eprintln!("the switch failed: {}", String::from_utf8_lossy(&body));
                return Err(io::Error::other("the switch failed"));
            }
            // Settings that changed, and that it is ready.
            _ if switching && !b"SZ".contains(&kind[0]) => continue,
            _ => {}
        }
        client.write_all(&kind)?;
        client.write_all(&body)?;
        if switching && kind[0] == b'Z' {
            return Ok(pid);
        }
    }
}

/// The length of a message and what follows.
fn read_body(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = length.to_vec();
    body.resize((u32::from_be_bytes(length) as usize).max(4), 0);
    stream.read_exact(&mut body[4..])?;
    Ok(body)
}
