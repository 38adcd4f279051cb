-- S6: refused means nothing changed: 42501, the first criterion that failed, and the GRANT that would cure it.
CREATE ROLE helpdesk LOGIN;
CREATE ROLE sales;
CREATE ROLE bob LOGIN CREATEDB IN ROLE sales;
\c - helpdesk
SELECT setuser('bob');
\echo :SQLSTATE
SELECT current_user;
-- Cured one by one, each attempt is judged afresh.
\c - postgres
GRANT "SET USER" (bob) TO helpdesk;
\c - helpdesk
SELECT setuser('bob');
\c - postgres
GRANT sales TO helpdesk;
\c - helpdesk
SELECT setuser('bob');
\c - postgres
ALTER ROLE helpdesk CREATEDB;
\c - helpdesk
SELECT setuser('bob');
SELECT current_user, session_user;
-- Refused while impersonating: the impersonation goes on.
SELECT setuser('postgres');
\echo :SQLSTATE
SELECT setuser('nobody');
\echo :SQLSTATE
SELECT setuser('sales');
\echo :SQLSTATE
SELECT current_user, session_user;
SELECT setuser();
-- In a transaction the refusal is an error like any.
BEGIN;
SELECT setuser('postgres');
SELECT 1;
ROLLBACK;
SELECT current_user;
-- Odd names.
SELECT setuser('');
\echo :SQLSTATE
SELECT setuser('Bob');
SELECT setuser('"bob"');
SELECT setuser('bob ');
SELECT setuser('none');
SELECT setuser('public');
SELECT setuser(repeat('x', 100));
\echo :SQLSTATE
SELECT setuser('xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx');
\echo :SQLSTATE
SELECT setuser(NULL);
SELECT setuser('helpdesk');
