package app

import (
	"log/slog"
	"net"
	"path/filepath"

	"github.com/credstream/credstream/cmd/credstream/servetls"
	"github.com/credstream/credstream/fault"
)

var (
	errTLSFlags = fault.New(fault.Invalid, "config_tls_flags",
		"Give --tls-cert and --tls-key together, or --dev-tls. --tls-client-ca needs one of the two.")
	errPublicTLS = fault.New(fault.Invalid, "config_public_url_tls", "--public-url must be an https:// URL, since the HTTP port accepts TLS only.")
)

// openTLS loads the certificate of the ports; nil without one. ca is the file with the CA of
// --dev-tls.
func openTLS(cfg Config, log *slog.Logger) (source *servetls.Source, ca string, err error) {
	files := servetls.Files{Cert: cfg.TLSCert, Key: cfg.TLSKey}
	given := files.Cert != "" || files.Key != ""
	switch {
	case given && (cfg.DevTLS || files.Cert == "" || files.Key == ""), !given && !cfg.DevTLS && cfg.TLSClientCA != "":
		return nil, "", errTLSFlags
	case cfg.DevTLS:
		folder, err := filepath.Abs(filepath.Join(cfg.Data, "dev-tls"))
		if err != nil {
			return nil, "", errTLSFlags.Withf("The data folder of --dev-tls cannot be found: %v.", err)
		}
		if files, ca, err = servetls.Dev(folder, listenHosts(cfg.HTTP, cfg.NATSListen)); err != nil {
			return nil, "", err
		}
		log.Warn("TLS with a certificate of a development CA; whoever can read its folder can impersonate the service", "folder", folder)
	case !given:
		return nil, "", nil
	}
	files.ClientCA, files.MinVersion = cfg.TLSClientCA, cfg.TLSMinVersion
	source, err = servetls.Open(files, log)
	return source, ca, err
}

// listenHosts are the hosts of listen addresses that clients can connect to.
func listenHosts(addresses ...string) (hosts []string) {
	for _, a := range addresses {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err == nil && host != "" && (ip == nil || !ip.IsUnspecified()) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
