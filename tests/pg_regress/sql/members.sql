-- What CREATE EXTENSION makes, as psql lists it. Its own file: from the first event on there are partitions, by month.
-- From 17 on psql lists the types of the tables as well; they are left out then.
\set ECHO none
SELECT current_setting('server_version_num')::int >= 170000 AS with_types \gset
\if :with_types
\pset title 'Objects in extension "impersonate"'
SELECT pg_describe_object(classid, objid, 0) AS "Object description" FROM pg_depend
 WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND classid <> 'pg_type'::regclass
   AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'impersonate') ORDER BY 1;
\else
\dx+ impersonate
\endif
