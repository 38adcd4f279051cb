-- What there is says what it is: comments on every object, and impersonate.help(). A new object that somebody may call
-- needs a comment, and a line in help().
-- Row types of relations and array types, which are members too from 17 on, are the relations' own.
CREATE VIEW member AS
    SELECT d.classid, d.objid, o.type, o.identity
      FROM pg_depend d, pg_identify_object(d.classid, d.objid, 0) o
     WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
       AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'impersonate') AND o.type <> 'type';
SELECT count(*) > 50 AS many FROM member;
-- Objects without a comment: none.
SELECT type, identity FROM member
 WHERE COALESCE(obj_description(objid, classid::regclass::name), '') = '' ORDER BY 1, 2;
-- Comments are words without a full stop.
SELECT identity, obj_description(objid, classid::regclass::name) FROM member
 WHERE obj_description(objid, classid::regclass::name) ~ '\.\s*$' ORDER BY 1;

-- What nobody calls: triggers, and what views, dumps, statements and other functions are made of.
CREATE VIEW callable AS
    SELECT CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname || '.' END || COALESCE(p.proname, c.relname) AS name,
           CASE WHEN p.prokind = 'p' THEN 'procedure' WHEN p.oid IS NOT NULL THEN 'function'
                WHEN c.relkind = 'v' THEN 'view' ELSE 'table' END AS kind
      FROM member m
           LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
           LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
           JOIN pg_namespace n ON n.oid = COALESCE(p.pronamespace, c.relnamespace)
     WHERE (p.prorettype IS NULL OR p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype))
       AND COALESCE(p.proname, c.relname) NOT IN (
           'live_grants', 'active_impersonations', 'audit_queues',
           'dumped_grants', 'dumped_project_content', 'dumped_project_members',
           'set_config', 'stamp_role', 'audit_spools', 'may_send', 'node_report', 'existing_project', 'require_library',
           'set_user_grant', 'grant_access', 'project_list', 'project_content', 'project_member', 'audit_state')
       AND c.relkind IS DISTINCT FROM 'S';
-- Without a line in help(), or with one that is for something else: none.
SELECT name, kind FROM callable
UNION ALL SELECT name, 'setting' FROM pg_settings WHERE name LIKE 'impersonate.%'
EXCEPT SELECT name, kind FROM impersonate.help() ORDER BY 1;
SELECT name, kind FROM impersonate.help() WHERE kind <> 'privilege'
EXCEPT (SELECT name, kind FROM callable UNION ALL SELECT name, 'setting' FROM pg_settings) ORDER BY 1;
SELECT name FROM impersonate.help() GROUP BY name HAVING count(*) > 1;
-- Each says something, and its example is about it.
SELECT name, kind, meaning, example FROM impersonate.help()
 WHERE COALESCE(meaning, '') = '' OR strpos(example, name) = 0 OR meaning LIKE 'known while%';
SELECT kind, name, meaning FROM impersonate.help() WHERE kind = 'privilege' OR name LIKE '%help' OR name ~ '\.reason$';

-- Each example is run: an error would stand here. Nobody else's settings are in the way.
CREATE ROLE staff;
CREATE ROLE bob LOGIN IN ROLE staff;
CREATE ROLE anna LOGIN;
CREATE ROLE lead LOGIN;
CREATE ROLE dba LOGIN;
CREATE TABLE public.customer (id int);
\set ECHO none
\o /dev/null
SELECT example FROM impersonate.help() WHERE name !~ '^(setuser|impersonate\.(impersonate_user|target))$' \gexec
SELECT unnest(ARRAY[example, 'SELECT setuser()'])
  FROM impersonate.help() WHERE name ~ '^(setuser|impersonate\.(impersonate_user|target))$' \gexec
\o
\set ECHO all
-- They did what they say.
SELECT impersonate.audit_sync();
SELECT event, command_tag, user_name, count(*) FROM impersonate.audit
 WHERE event IN ('GRANT', 'REVOKE', 'SETUSER') GROUP BY 1, 2, 3 ORDER BY 1, 2;
SELECT external_name, role FROM impersonate.user_mapping;
-- Whoever may connect may ask.
SET ROLE anna;
SELECT count(*) > 50 AS many FROM impersonate.help();
RESET ROLE;
