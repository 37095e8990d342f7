CREATE TABLE events (id bigint PRIMARY KEY, event text, channel text, data text NOT NULL);
CREATE TABLE last_event (id bigint NOT NULL);
INSERT INTO last_event VALUES (0);

CREATE FUNCTION publish(data text, event text = NULL, channel text = NULL)
RETURNS bigint LANGUAGE sql AS $$
    UPDATE last_event SET id = id + 1;
    INSERT INTO events SELECT id, $2, $3, $1 FROM last_event;
    NOTIFY events;
    SELECT id FROM last_event;
$$;
