//! tokio-postgres: the simple protocol, the extended one with statements that it prepares, and the same unnamed.

use futures_util::future::join4;
use std::env;
use std::future::Future;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, Error, NoTls, SimpleQueryMessage};

const DOORS: &str = include_str!("../../doors.tsv");
const WITNESS: &str = "SELECT current_user || ' of ' || session_user";

/// A line of `doors.tsv`.
struct Door {
    kind: &'static str,
    login: &'static str,
    name: &'static str,
    begin: &'static str,
    end: &'static str,
    end_value: Option<&'static str>,
}

fn doors(login: &str, kind: &str) -> Vec<Door> {
    let door = |line: &'static str| {
        let columns: Vec<_> = line.split('\t').collect();
        Door {
            kind: columns[0],
            login: columns[1],
            name: columns[2],
            begin: columns[4],
            end: columns[6],
            end_value: (columns[7] != r"\N").then_some(columns[7]),
        }
    };
    let all = DOORS.lines().skip(1).map(door);
    all.filter(|door| door.login == login && door.kind == kind).collect()
}

/// How connections come: directly, or as pgbouncer hands them on.
#[derive(Clone, Copy, PartialEq)]
enum Via {
    Direct,
    Session,
    Transaction,
}

fn via() -> Via {
    match env::var("VIA").as_deref() {
        Ok("session") => Via::Session,
        Ok("transaction") => Via::Transaction,
        _ => Via::Direct,
    }
}

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Protocol {
    Simple,
    /// Parsed with a name that the driver makes up, then bound.
    Extended,
    /// Without a name: what a pooler between transactions leaves to do.
    Unnamed,
}

fn told(name: &str, found: &[String], wanted: &[String]) {
    if found == wanted {
        println!("ok {name}");
    } else {
        println!("not ok {name}: {found:?}");
    }
}

fn there_and_back(login: &str) -> Vec<String> {
    vec![format!("bob of {login}"), format!("{login} of {login}")]
}

/// An error as a line.
fn said(error: &Error) -> String {
    error
        .as_db_error()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

async fn connect(login: &str, options: &str) -> Result<Client, Error> {
    let mut config = Config::new();
    let place = |name| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    config
        .host(place("PGHOST"))
        .port(place("PGPORT").parse().expect("a port"));
    config.user(login).dbname(place("PGDATABASE"));
    if !options.is_empty() {
        config.options(options);
    }
    let (client, connection) = config.connect(NoTls).await?;
    // Its end shows in the client's own errors.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

async fn run(client: &Client, protocol: Protocol, sql: &str) -> Result<(), Error> {
    match protocol {
        Protocol::Simple => client.batch_execute(sql).await,
        Protocol::Extended => client.execute(sql, &[]).await.map(drop),
        Protocol::Unnamed => client.query_typed(sql, &[]).await.map(drop),
    }
}

async fn value(client: &Client, sql: &str) -> Result<String, Error> {
    let rows = client.simple_query(sql).await?;
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap_or_default().to_owned())
}

async fn pid(client: &Client) -> Result<String, Error> {
    value(client, "SELECT pg_backend_pid()").await
}

/// Tells of a door: what `work` found, or its error.
async fn door(name: String, login: &str, work: impl Future<Output = Result<Vec<String>, Error>>) {
    let found = work.await.unwrap_or_else(|error| vec![said(&error)]);
    told(&name, &found, &there_and_back(login));
}

async fn lasting(client: &Client, login: &str, protocol: Protocol) {
    for Door { name, begin, end, .. } in doors(login, "session") {
        let work = async {
            run(client, protocol, begin).await?;
            let found = value(client, WITNESS).await?;
            run(client, protocol, end).await?;
            Ok(vec![found, value(client, WITNESS).await?])
        };
        door(format!("{name}, {protocol:?}"), login, work).await;
    }
}

async fn local(client: &mut Client, login: &str, protocol: Protocol) {
    for Door { name, begin, .. } in doors(login, "local") {
        let work = async {
            run(client, Protocol::Simple, "BEGIN").await?;
            run(client, protocol, begin).await?;
            let found = value(client, WITNESS).await?;
            run(client, Protocol::Simple, "COMMIT").await?;
            Ok(vec![found, value(client, WITNESS).await?])
        };
        door(format!("{name}, {protocol:?}"), login, work).await;
    }
}

async fn parameters(client: &Client, login: &str) {
    for Door {
        name,
        begin,
        end,
        end_value,
        ..
    } in doors(login, "parameter")
    {
        let work = async {
            client.execute(begin, &[&"bob"]).await?;
            let found = value(client, WITNESS).await?;
            client.execute(end, &[&end_value]).await?;
            Ok(vec![found, value(client, WITNESS).await?])
        };
        door(name.to_owned(), login, work).await;
        let work = async {
            client.query_typed(begin, &[(&"bob", Type::TEXT)]).await?;
            let found = value(client, WITNESS).await?;
            client.query_typed(end, &[(&end_value, Type::TEXT)]).await?;
            Ok(vec![found, value(client, WITNESS).await?])
        };
        door(format!("{name}, unnamed"), login, work).await;
    }
    if login != "alice" {
        return;
    }
    // Prepared once, used by turns with its own end.
    let work = async {
        let begin = client.prepare("SELECT setuser($1, reason => $2)").await?;
        let mut found = Vec::new();
        for _ in 0..3 {
            client.execute(&begin, &[&"bob", &"a reason"]).await?;
            found.push(value(client, WITNESS).await?);
            client.execute(&begin, &[&None::<&str>, &None::<&str>]).await?;
            found.push(value(client, WITNESS).await?);
        }
        Ok::<_, Error>(found)
    };
    let found = work.await.unwrap_or_else(|error| vec![said(&error)]);
    told(
        "setuser() prepared once",
        &found,
        &[there_and_back(login), there_and_back(login), there_and_back(login)].concat(),
    );
}

/// All of a door sent before the first answer is there.
async fn pipelined(client: &Client, login: &str) {
    for Door { name, begin, end, .. } in doors(login, "session") {
        let work = async {
            let (_, found, _, after) = join4(
                client.query_typed(begin, &[]),
                client.query_typed(WITNESS, &[]),
                client.query_typed(end, &[]),
                client.query_typed(WITNESS, &[]),
            )
            .await;
            Ok(vec![found?[0].get(0), after?[0].get(0)])
        };
        door(format!("{name}, pipelined"), login, work).await;
    }
    for Door { name, begin, .. } in doors(login, "local") {
        let work = async {
            let (started, began, found, ended) = join4(
                client.batch_execute("BEGIN"),
                client.query_typed(begin, &[]),
                client.query_typed(WITNESS, &[]),
                client.batch_execute("COMMIT"),
            )
            .await;
            started.and(began.map(drop)).and(ended)?;
            Ok(vec![found?[0].get(0), value(client, WITNESS).await?])
        };
        door(format!("{name}, pipelined"), login, work).await;
    }
}

/// The refusal as the driver hands it on; and nothing has changed.
async fn refused(
    client: &Client,
    name: &str,
    sql: &str,
    protocol: Protocol,
    wanted: (&str, &str),
) -> Result<(), Error> {
    let before = value(client, WITNESS).await?;
    let found = match run(client, protocol, sql).await {
        Ok(()) => vec!["no refusal".to_owned()],
        Err(error) => match error.as_db_error() {
            Some(error) if error.hint().is_some_and(|hint| hint.contains(wanted.1)) => {
                vec![error.code().code().to_owned(), value(client, WITNESS).await?]
            }
            _ => vec![said(&error)],
        },
    };
    told(name, &found, &[wanted.0.to_owned(), before]);
    Ok(())
}

/// One client goes away in the midst of it, and the next gets its connection, of which the pool has one.
async fn handed_on(login: &str) -> Result<(), Error> {
    let session = via() == Via::Session;
    for Door { name, begin, .. } in doors(login, if session { "session" } else { "local" }) {
        let first = connect(login, "").await?;
        if !session {
            first.batch_execute("BEGIN").await?;
        }
        first.batch_execute(begin).await?;
        let mut found = vec![value(&first, WITNESS).await?];
        let before = pid(&first).await?;
        drop(first);
        let second = connect(login, "").await?;
        found.push(value(&second, WITNESS).await?);
        found.push(((pid(&second).await? == before) == session).to_string());
        let mut wanted = there_and_back(login);
        wanted.push("true".to_owned());
        told(&format!("{name}, the next client"), &found, &wanted);
    }
    Ok(())
}

/// Two clients take turns on one connection: each transaction is its own client's.
async fn two_at_once(login: &str) -> Result<(), Error> {
    let (one, other) = (connect(login, "").await?, connect(login, "").await?);
    let mut found = vec![(pid(&one).await? == pid(&other).await?).to_string()];
    let mut wanted = vec!["true".to_owned()];
    for Door { begin, .. } in doors(login, "local") {
        for _ in 0..3 {
            one.batch_execute("BEGIN").await?;
            run(&one, Protocol::Unnamed, begin).await?;
            found.push(value(&one, WITNESS).await?);
            one.batch_execute("COMMIT").await?;
            found.push(value(&other, WITNESS).await?);
            wanted.extend(there_and_back(login));
        }
    }
    told(&format!("two clients by turns, {login}"), &found, &wanted);
    Ok(())
}

async fn start_up() -> Result<(), Error> {
    let wanted = there_and_back("alice");
    match connect("alice", "-c impersonate.target=bob").await {
        Ok(client) => {
            let mut found = vec![value(&client, WITNESS).await?];
            client.batch_execute("SET impersonate.target = ''").await?;
            found.push(value(&client, WITNESS).await?);
            let wanted = if via() == Via::Direct { wanted } else { Vec::new() };
            told("start-up option", &found, &wanted);
        }
        Err(error) if via() != Via::Direct && said(&error).contains("unsupported startup parameter") => {
            told("start-up option, refused by the pooler", &[], &[]);
        }
        Err(error) => told("start-up option", &[said(&error)], &wanted),
    }
    Ok(())
}

async fn all() -> Result<(), Error> {
    for login in ["alice", "tool"] {
        let mut client = connect(login, "").await?;
        let protocols: &[Protocol] = match via() {
            Via::Transaction => &[Protocol::Simple, Protocol::Unnamed],
            _ => &[Protocol::Simple, Protocol::Extended, Protocol::Unnamed],
        };
        for &protocol in protocols {
            local(&mut client, login, protocol).await;
            if via() == Via::Transaction {
                for Door { name, begin, .. } in doors(login, "session") {
                    let name = format!("{name}, {protocol:?}, refused");
                    refused(&client, &name, begin, protocol, ("55000", "local => true")).await?;
                }
            } else {
                lasting(&client, login, protocol).await;
            }
            let sql = match login {
                "alice" => "SELECT setuser('carol', local => true)",
                _ => "SET LOCAL ROLE carol",
            };
            let name = format!("a refusal of {login}, {protocol:?}");
            refused(&client, &name, sql, protocol, ("42501", "GRANT \"SET USER\" (carol)")).await?;
        }
        if via() != Via::Transaction {
            parameters(&client, login).await;
            pipelined(&client, login).await;
        }
        drop(client);
        if via() != Via::Direct {
            handed_on(login).await?;
        }
        if via() == Via::Transaction {
            two_at_once(login).await?;
        }
    }
    start_up().await
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    if let Err(error) = runtime.block_on(all()) {
        println!("not ok the connection: {}", said(&error));
        std::process::exit(1);
    }
}
