package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The targets compared with the handwritten service, at 1, 16 and 64 clients.
var (
	barPeerCreate = map[int]float64{1: 1, 16: 1.25, clients: 1.25}
	barPeerRead   = map[int]float64{clients: 1.5}
)

// postgres is a PostgreSQL server on a folder of its own, reached by a Unix socket.
type postgres struct {
	cmd *exec.Cmd
	dir string
}

// errNoPostgres says that the peer cannot be measured on this machine.
var errNoPostgres = errors.New("PostgreSQL is not installed")

// postgresPrograms returns the folder with initdb and postgres.
func postgresPrograms() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // where Debian keeps them
	if err != nil || len(found) == 0 {
		return "", errNoPostgres
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// startPostgres makes a database cluster in dir and starts the server with its defaults but for
// the memory. As root it runs as the user postgres, because PostgreSQL refuses root.
func startPostgres(ctx context.Context, dir string) (*postgres, error) {
	programs, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of PostgreSQL: %w", err)
	}
	attributes := &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		if attributes.Credential, err = ownedBy("postgres", dir); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(dir, "data")
	initialize := exec.CommandContext(ctx, filepath.Join(programs, "initdb"), "--pgdata", data, "--auth", "trust", "--username", "postgres")
	initialize.Dir, initialize.SysProcAttr = dir, attributes
	if out, err := initialize.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %.1000s", err, out)
	}
	p := &postgres{dir: dir, cmd: exec.CommandContext(ctx, filepath.Join(programs, "postgres"), "-D", data, "-k", dir,
		"-c", "listen_addresses=", "-c", "shared_buffers=512MB")}
	p.cmd.Dir, p.cmd.SysProcAttr = dir, attributes
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGINT) } // fast shutdown
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(ctx, p.dsn())
		if err == nil {
			return p, conn.Close(ctx)
		}
		if time.Since(began) > 20*time.Second {
			p.stop()
			return nil, fmt.Errorf("start PostgreSQL: %w", err)
		}
	}
}

func (p *postgres) dsn() string {
	return "host=" + p.dir + " user=postgres dbname=postgres sslmode=disable"
}

func (p *postgres) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	_ = p.cmd.Wait()
}

// ownedBy gives dir to a user and returns the credential to run programs as that user.
func ownedBy(name, dir string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, errNoPostgres
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	// The folders above were made for root alone.
	if err := errors.Join(err1, err2, os.Chown(dir, int(uid), int(gid)), os.Chmod(filepath.Dir(dir), 0o711)); err != nil { //nolint:gosec // to be entered, not read
		return nil, fmt.Errorf("give the folder to the user %s: %w", name, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// cpu returns the CPU time of the server's processes so far, ended ones included.
func (p *postgres) cpu() (time.Duration, error) {
	sum, err := cpuOf(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, file := range all {
		stat, err := os.ReadFile(file)
		if words := statWords(stat); err == nil && len(words) > 1 && words[1] == strconv.Itoa(p.cmd.Process.Pid) {
			own, err := ticks(words[11:13])
			if err != nil {
				return 0, err
			}
			sum += own
		}
	}
	return sum, nil
}

// byHand is the peer: credentials in PostgreSQL as a platform would store them without this
// service. A create writes the credential, its version and an audit row in one transaction, sent
// in one round trip. A read writes an audit row. Values are encrypted with AES-256-GCM.
type byHand struct {
	db   *pgxpool.Pool
	aead cipher.AEAD
	key  [sha256.Size]byte // hash of the caller's key
}

const byHandSchema = `
CREATE TABLE credentials (id text PRIMARY KEY, version int NOT NULL, sealed bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE versions (id text, version int, sealed bytea NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id, version));
CREATE TABLE audit (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(),
	actor text NOT NULL, action text NOT NULL, id text NOT NULL, remote text);`

// byHandChild serves the peer. args: connection string.
func byHandChild(ctx context.Context, stdout io.Writer, args []string) error {
	cfg, err := pgxpool.ParseConfig(args[0])
	if err != nil {
		return fmt.Errorf("parse the connection string: %w", err)
	}
	cfg.MaxConns, cfg.MinConns = 32, 32
	h := &byHand{key: sha256.Sum256([]byte(adminKey))}
	if h.db, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer h.db.Close()
	if _, err := h.db.Exec(ctx, byHandSchema); err != nil {
		return fmt.Errorf("create the tables: %w", err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	block, err := aes.NewCipher(secret)
	if err == nil {
		h.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		return fmt.Errorf("make the cipher: %w", err)
	}
	return serveChild(ctx, stdout, h.serve)
}

func (h *byHand) serve(w http.ResponseWriter, r *http.Request) {
	got := sha256.Sum256([]byte(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")))
	if subtle.ConstantTimeCompare(got[:], h.key[:]) != 1 {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	id := strings.TrimPrefix(r.URL.Path, "/")
	answer := h.read
	if r.Method == http.MethodPost {
		answer = h.create
	}
	body, err := answer(r, id)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
}

const auditRow = "INSERT INTO audit (actor, action, id, remote) VALUES ($1, $2, $3, $4)"

func (h *byHand) create(r *http.Request, id string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, err
	}
	sealed := h.aead.Seal(nil, nil, body, []byte(id)) //nolint:gosec // it makes the nonce itself
	var batch pgx.Batch                               // one implicit transaction
	batch.Queue("INSERT INTO credentials (id, version, sealed) VALUES ($1, 1, $2)", id, sealed)
	batch.Queue("INSERT INTO versions (id, version, sealed) VALUES ($1, 1, $2)", id, sealed)
	batch.Queue(auditRow, "bench", "create", id, r.RemoteAddr)
	if err := h.db.SendBatch(r.Context(), &batch).Close(); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"id": id, "version": 1})
}

func (h *byHand) read(r *http.Request, id string) ([]byte, error) {
	var version int
	var sealed []byte
	var batch pgx.Batch
	batch.Queue("SELECT version, sealed FROM credentials WHERE id = $1", id).QueryRow(func(row pgx.Row) error { return row.Scan(&version, &sealed) })
	batch.Queue(auditRow, "bench", "read", id, r.RemoteAddr)
	if err := h.db.SendBatch(r.Context(), &batch).Close(); err != nil {
		return nil, err
	}
	fields, err := h.aead.Open(nil, nil, sealed, []byte(id))
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"id": id, "version": version, "keys": json.RawMessage(fields)})
}

// peers measures creates and audited reads compared with the handwritten service.
func (b *bench) peers(ctx context.Context, s *site) error {
	p, err := startPostgres(ctx, filepath.Join(b.dir, "postgres"))
	if errors.Is(err, errNoPostgres) {
		b.report.note("Not measured: %v.", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer p.stop()
	hand, err := spawnChild(ctx, "by-hand", p.dsn())
	if err != nil {
		return err
	}
	defer hand.stop()
	e, err := openEngines(ctx, s)
	if err != nil {
		return err
	}
	handCPU := func() (time.Duration, error) {
		own, err := cpuOf(hand.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		server, err := p.cpu()
		return own + server, err
	}
	creates := overHTTP(hand.line, func(_ int, c *wire) func() error {
		var body, request []byte
		return func() error {
			n := next.Add(1)
			body = append(append(append(body[:0], `{"apiKey":"`...), appendSecret(nil, n)...), `"}`...)
			request = postRequest(request[:0], "/"+commandID(n), adminKey, "", body)
			return c.expect(200, "create, handwritten service", request)
		}
	})
	reads := overHTTP(hand.line, func(_ int, c *wire) func() error {
		request := getRequest(nil, "/read", adminKey)
		return func() error { return c.expect(200, "read, handwritten service", request) }
	})
	first, err := dialWire(hand.line)
	if err != nil {
		return err
	}
	defer first.close()
	if err := first.expect(200, "create, handwritten service", postRequest(nil, "/read", adminKey, "", []byte(`{"apiKey":"x"}`))); err != nil {
		return err
	}
	for _, pair := range []struct {
		what, hand  string
		ours, peers func(int) (caller, error)
		bars        map[int]float64
	}{
		{"create over HTTP", "create, handwritten service", s.creators(s.keys, "", nil), creates, barPeerCreate},
		{"new durable lease, clear text", "audited read, handwritten service", e.newLeases(true), reads, barPeerRead},
	} {
		for _, n := range []int{1, 16, clients} {
			var ours, theirs []load
			var ratios []float64
			for range b.rounds {
				us, err := s.counted(ctx, n, b.measured(), pair.ours)
				if err != nil {
					return err
				}
				them, err := counted(ctx, n, b.measured(), pair.peers, handCPU)
				if err != nil {
					return err
				}
				ours, theirs, ratios = append(ours, us), append(theirs, them), append(ratios, us.rate/them.rate)
			}
			us, them, ratio := middle(ours), middle(theirs), median(ratios)
			with := ", " + countClients(n)
			b.report.add(pair.hand+with, perSecond(them.rate), latencies(them)+", "+micros(them.cpu)+" with PostgreSQL")
			details := fmt.Sprintf("%.2f times; %s, %s", ratio, latencies(us), micros(us.cpu))
			if bar := pair.bars[n]; bar > 0 {
				b.report.target(pair.what+with, perSecond(us.rate), details, fmt.Sprintf("%.2f times the handwritten service", bar), ratio >= bar)
			} else {
				b.report.add(pair.what+with, perSecond(us.rate), details)
			}
		}
	}
	return nil
}
