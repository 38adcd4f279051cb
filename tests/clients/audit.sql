-- What the audit has of a client, after event :since. psql -v since=N -v via=direct|session|transaction -v client=NAME
-- -v folder=FOLDER. Prints "ok DOOR, audit" or "not ok DOOR, audit: what is wrong" for each door that it has used.
\set doors `cat "$FOLDER/doors.tsv"`
SELECT impersonate.audit_sync() \g /dev/null
WITH doors AS (
    -- The audit has of setuser() who it was and no more.
    SELECT f[1] AS kind, f[2] AS login, f[3] AS name, f[4] AS tag,
           replace(replace(rtrim(f[5], ';'), ', local => true', ''), 'setuser($1)', 'setuser(''bob'')') AS begin,
           nullif(f[6], '') AS end_tag,
           regexp_replace(nullif(f[7], ''), '^SELECT setuser.*', 'SELECT setuser()') AS "end"
      FROM string_to_table(:'doors', E'\n') line, string_to_array(line, E'\t') f
     WHERE f[1] <> 'kind'
), spans AS (
    SELECT impersonation_id,
           count(*) FILTER (WHERE event = 'SETUSER') AS begins,
           count(*) FILTER (WHERE event = 'RESETUSER') AS ends,
           count(*) FILTER (WHERE event = 'STATEMENT' AND sqlstate = '00000'
                              AND statement LIKE '%current_user || '' of '' || session_user') AS witnesses,
           min(rtrim(statement, ';')) FILTER (WHERE event = 'SETUSER') AS begin,
           min(command_tag) FILTER (WHERE event = 'SETUSER') AS tag,
           min(statement) FILTER (WHERE event = 'RESETUSER') AS "end",
           min(command_tag) FILTER (WHERE event = 'RESETUSER') AS end_tag,
           min(detail->>'cause') FILTER (WHERE event = 'RESETUSER') AS cause,
           min(session_user_name) AS login,
           bool_and(user_name = 'bob' AND role_name = 'bob' AND session_user_name IN ('alice', 'tool')) AS bobs
      FROM impersonate.audit WHERE event_id > :since AND impersonation_id IS NOT NULL GROUP BY 1
), found AS (
    SELECT d.name, (SELECT count(*) FROM spans s
                     WHERE s.begin = d.begin AND s.tag = d.tag AND s.login = d.login AND s.bobs AND s.witnesses = 1
                       AND s."end" IS NOT DISTINCT FROM d."end" AND s.end_tag IS NOT DISTINCT FROM d.end_tag
                       AND s.cause = CASE d.kind WHEN 'local' THEN 'end of transaction' ELSE 'asked' END) AS times
      FROM doors d
     WHERE CASE :'via' WHEN 'transaction' THEN d.kind = 'local'
                       ELSE d.kind <> 'parameter' OR :'client' !~ '^psql' END
), lines (line) AS (
    SELECT CASE WHEN times > 0 THEN 'ok ' ELSE 'not ok ' END || name || ', audit' FROM found
    UNION ALL
    SELECT CASE WHEN count(*) > 0 AND bool_and(begins = 1 AND ends = 1 AND bobs) THEN 'ok' ELSE 'not ok' END
           || ' each of ' || count(*) || ' beginnings has its end, audit' FROM spans
    UNION ALL
    -- The next client gets the connection after the pooler's DISCARD ALL.
    SELECT CASE WHEN count(*) = (SELECT count(*) FROM doors WHERE kind = 'session') THEN 'ok' ELSE 'not ok' END
           || ' whoever left was ended by the pooler, audit' FROM spans WHERE cause = 'discard'
     HAVING :'via' = 'session'
    UNION ALL
    SELECT CASE WHEN array_agg(detail->>'function' ORDER BY event_id)
                     @> '{pg_catalog.lo_creat, pg_catalog.lo_open, pg_catalog.lowrite, pg_catalog.lo_close}'
                     AND bool_and(user_name = 'bob') THEN 'ok' ELSE 'not ok' END
           || ' each call of a large object is on record, audit'
      FROM impersonate.audit WHERE event_id > :since AND detail ? 'function'
    HAVING :'via' <> 'transaction' AND :'client' ~ '^pgjdbc'
    UNION ALL
    SELECT CASE WHEN count(*) > 0 AND bool_and(user_name = session_user_name AND impersonation_id IS NULL) THEN 'ok'
                ELSE 'not ok' END || ' refusals are on record, audit'
      FROM impersonate.audit WHERE event_id > :since AND event = 'DENIED'
)
SELECT line FROM lines;
SELECT CASE WHEN count(*) = 0 THEN 'ok' ELSE 'not ok' END || ' nobody is impersonated any more' FROM impersonate.active;
