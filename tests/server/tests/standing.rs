//! What must be told while a transaction ends has its room in the queue before, however deep the switches lie that a
//! ROLLBACK undoes, and however full the queue is (L6).

mod stage;

use impersonate_server_tests::raw::{error_in, Transaction};
use impersonate_server_tests::{wait_until, Cluster};
use stage::{lasting, Stage};

/// Switches in `depth` savepoints, one inside the other; then the writer is stopped and the queue filled to the brim, and
/// `undo` is run. Everything has its row in the end.
fn undone_with_a_full_queue(depth: usize, undo: &[&str]) {
    let cluster = lasting(
        Cluster::builder()
            .setting("impersonate.audit_queue_size", "64kB")
            .start(),
    );
    let database = cluster.database("d").name;
    let stage = Stage::in_cluster(cluster, &database);
    let mut session = stage.session();
    session.ok("BEGIN");
    for level in 0..depth {
        session.ok(&format!("SAVEPOINT s{level}"));
        session.become_role(if level % 2 == 0 { "bob" } else { "carol" });
    }
    session.fails("22012", "SELECT 1 / 0");

    // Those that take what is left: first in large pieces, then in small ones.
    let texts = [3000, 300, 1].map(|length| format!("SELECT '{}'", "x".repeat(length)));
    let mut others = texts.each_ref().map(|_| stage.session());
    for other in &mut others {
        other.become_role("bob");
    }
    stage.admin("SELECT impersonate.audit_sync()");
    let mut keeper = stage.session_of("postgres");
    keeper.ok("BEGIN; LOCK TABLE impersonate.audit IN ACCESS EXCLUSIVE MODE");
    for (other, text) in others.iter_mut().zip(&texts) {
        for _ in 0..60 {
            other.raw.query(text);
        }
        other.raw.flush();
        let waits = format!(
            "SELECT 1 FROM pg_stat_activity WHERE pid = {} AND state = 'active' AND now() - query_start > '300 ms'",
            other.pid()
        );
        wait_until("the queue is full", || !stage.look(&waits).is_empty());
    }

    for statement in undo {
        let answer = session.send(stage::Protocol::Simple, statement);
        assert_eq!(error_in(&answer), None, "{statement}");
    }
    keeper.ok("COMMIT");
    if session.transaction() != Transaction::None {
        session.ok("ROLLBACK");
    }
    session.is_itself();
    for other in &mut others {
        for _ in 0..60 {
            other.raw.read_until_ready();
        }
    }
    // Starts and switches over; the error undid one. Then ends of which all but the last bring one back, or one end.
    let undone_at_once = undo == ["ROLLBACK"];
    let expected = if undone_at_once { 2 * depth + 2 } else { 4 * depth - 2 };
    assert_eq!(stage.history(session.pid()).len(), expected);
    let told = stage.audit(session.pid(), &["STATEMENT"]);
    for statement in undo {
        assert!(
            told.iter().any(|row| row.statement.as_deref() == Some(*statement)),
            "{statement}: {told:#?}"
        );
    }
    let log = cluster.log();
    assert!(!log.contains("RESETUSER"), "an event went to the server log: {log}");
}

#[test]
fn l6_a_rollback_to_a_savepoint_under_many_switches_has_room() {
    undone_with_a_full_queue(8, &["ROLLBACK TO s0"]);
}

#[test]
fn l6_a_rollback_of_many_switches_has_room() {
    undone_with_a_full_queue(8, &["ROLLBACK"]);
}
