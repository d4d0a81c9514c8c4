package verify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// sslRequest asks a PostgreSQL server for TLS. It answers with one byte.
var sslRequest = []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}

// postgres opens a session of PostgreSQL and ends it. TLS is started here rather than by the driver,
// which does not tell a failed handshake from other errors.
func (l login) postgres(ctx context.Context, conn net.Conn) Result {
	if _, err := conn.Write(sslRequest); err != nil {
		return l.failed(ctx, err)
	}
	answer := make([]byte, 1)
	switch _, err := io.ReadFull(conn, answer); {
	case err != nil:
		return l.failed(ctx, err)
	case answer[0] == 'N':
		return l.result(OutcomeTLS)
	case answer[0] != 'S':
		return l.result(OutcomeProtocol)
	}
	secured, err := l.secure(ctx, conn)
	if err != nil {
		return l.insecure(ctx, err)
	}
	config, err := pgconn.ParseConfig("host=localhost port=5432 user=credstream sslmode=disable passfile=")
	if err != nil {
		return l.result(OutcomeProtocol)
	}
	// The library reads the environment of the service for everything that a configuration leaves out.
	config.Host, config.User, config.Password, config.Database = l.tls.ServerName, l.username, l.password, l.database
	config.RuntimeParams, config.Fallbacks, config.ValidateConnect, config.KerberosSpn = map[string]string{}, nil, nil, ""
	config.TLSConfig, config.MaxProtocolMessageBodyLen = nil, maxDialogue
	config.ChannelBinding = "prefer"
	config.RequireAuth = "password,md5,scram-sha-256" // a server that trusts everybody checks no password
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return secured, nil }
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(&fewIterations{from: r}, w)
	}
	session, err := pgconn.ConnectConfig(ctx, config)
	if err == nil {
		_ = session.Close(ctx)
		return l.result(OutcomeSignedIn)
	}
	if refused, is := errors.AsType[*pgconn.PgError](err); is {
		switch {
		case refused.Code == "3D000":
			return l.says(OutcomeRejected, "The server accepted the user name and the password, but has no database of this name.")
		case refused.Code == "42501":
			return l.says(OutcomeRejected, "The server accepted the user name and the password, but denies them this database.")
		case strings.HasPrefix(refused.Code, "28"): // invalid authorization
			return l.result(OutcomeRejected)
		case strings.HasPrefix(refused.Code, "53"), strings.HasPrefix(refused.Code, "57"): // no resources, intervention
			return l.result(OutcomeTemporary)
		}
		return l.result(OutcomeProtocol)
	}
	if strings.Contains(err.Error(), "require_auth") {
		return l.unasked()
	}
	return l.failed(ctx, err)
}

// fewIterations ends a connection whose server asks for a million iterations of PBKDF2 or more: they
// would occupy a processor, and the library allows ten million. The usual number is 4,096.
type fewIterations struct {
	from io.Reader
	read []byte
}

var manyIterations = regexp.MustCompile(`,i=0*[1-9][0-9]{6}`)

// Read implements io.Reader.
func (f *fewIterations) Read(b []byte) (int, error) {
	n, err := f.from.Read(b)
	if f.read = append(f.read, b[:n]...); manyIterations.Match(f.read) {
		return 0, errors.New("too many iterations")
	}
	return n, err
}

// mysql opens a session of MySQL or MariaDB and ends it. It sends no statement, so the server cannot
// ask for a local file (LOAD DATA LOCAL INFILE), and the driver would refuse.
func (l login) mysql(ctx context.Context, conn net.Conn) Result {
	first, err := mysqlGreeting(conn)
	if err != nil {
		return l.failed(ctx, err)
	}
	conn = limited{conn, io.MultiReader(bytes.NewReader(first), conn)}
	config := mysql.NewConfig()
	config.User, config.Passwd, config.DBName, config.Net, config.Addr = l.username, l.password, l.database, "tcp", l.address
	config.TLS, config.AllowFallbackToPlaintext, config.AllowAllFiles, config.AllowOldPasswords = l.tls, false, false, false
	config.AllowCleartextPasswords = true // over TLS, for servers that ask a directory
	config.Logger = &mysql.NopLogger{}
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return l.result(OutcomeProtocol)
	}
	session, err := connector.Connect(ctx)
	if err == nil {
		_ = session.Close()
		return l.result(OutcomeSignedIn)
	}
	if refused, is := errors.AsType[*mysql.MySQLError](err); is {
		switch {
		case refused.Number == 1049:
			return l.says(OutcomeRejected, "The server accepted the user name and the password, but has no database of this name.")
		case refused.Number == 1044:
			return l.says(OutcomeRejected, "The server accepted the user name and the password, but denies them this database.")
		case refused.Number == 1130, refused.Number == 1129:
			return l.says(OutcomeRejected, "The server accepts no connections from this service.")
		case slices.Contains([]uint16{1045, 1698, 1862, 3118, 4151}, refused.Number): // denied, expired, locked
			return l.result(OutcomeRejected)
		case slices.Contains([]uint16{1040, 1053, 1203, 1226}, refused.Number): // too many connections, shutdown
			return l.result(OutcomeTemporary)
		}
		return l.result(OutcomeProtocol)
	}
	if errors.Is(err, mysql.ErrNoTLS) {
		return l.result(OutcomeTLS)
	}
	return l.failed(ctx, err)
}

// mysqlGreeting reads the first packet of a server. The driver would index into a short one without a
// check, and leave a goroutine behind.
func mysqlGreeting(from io.Reader) ([]byte, error) {
	packet := make([]byte, 4)
	if _, err := io.ReadFull(from, packet); err != nil {
		return nil, err //nolint:wrapcheck // it is classified
	}
	size := int(packet[0]) | int(packet[1])<<8 | int(packet[2])<<16
	if size > maxDialogue {
		return nil, errors.New("a long greeting")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(from, body); err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	whole := len(body) >= 9 // an error
	if len(body) > 0 && body[0] != 0xff {
		version := bytes.IndexByte(body[1:], 0)
		scramble := version + 6
		whole = version >= 0 && (len(body) == scramble+11 || len(body) >= scramble+40)
	}
	if !whole {
		return nil, errors.New("a short greeting")
	}
	return append(packet, body...), nil
}
