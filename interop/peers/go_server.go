// A server over Go's crypto/tls, for `interop.peers.go`: it serves the files of a folder and takes
// any upload. It prints its address and then serves until it is killed.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
)

var versions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

var groups = map[string]tls.CurveID{
	"secp256r1": tls.CurveP256,
	"secp384r1": tls.CurveP384,
	"secp521r1": tls.CurveP521,
	"x25519":    tls.X25519,
}

var (
	chain    = flag.String("chain", "", "certificate chain, PEM")
	key      = flag.String("key", "", "private key, PEM")
	folder   = flag.String("folder", ".", "what is served")
	minimum  = flag.String("min", "1.2", "TLS version")
	maximum  = flag.String("max", "1.3", "TLS version")
	tickets  = flag.Bool("tickets", false, "issue session tickets")
	clientCA = flag.String("client-ca", "", "authorities of clients, PEM; each must have a certificate")
	keyLog   = flag.String("key-log", "", "where session secrets are appended")
	named    = flag.String("groups", "", "groups in order of preference, with commas")
	suites   = flag.String("suites", "", "TLS 1.2 suites, with commas")
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
}

func config() *tls.Config {
	made := &tls.Config{
		Certificates:           []tls.Certificate{must(tls.LoadX509KeyPair(*chain, *key))},
		MinVersion:             versions[*minimum],
		MaxVersion:             versions[*maximum],
		SessionTicketsDisabled: !*tickets,
	}
	for _, name := range list(*named) {
		group, known := groups[name]
		if !known {
			log.Fatalf("no group %q", name)
		}
		made.CurvePreferences = append(made.CurvePreferences, group)
	}
	for _, name := range list(*suites) {
		found := false
		for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			if suite.Name == name {
				made.CipherSuites, found = append(made.CipherSuites, suite.ID), true
			}
		}
		if !found {
			log.Fatalf("no suite %q", name)
		}
	}
	if *clientCA != "" {
		made.ClientCAs, made.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !made.ClientCAs.AppendCertsFromPEM(must(os.ReadFile(*clientCA))) {
			log.Fatal("no certificate in the client CA file")
		}
	}
	if *keyLog != "" {
		made.KeyLogWriter = must(os.OpenFile(*keyLog, os.O_WRONLY|os.O_APPEND, 0))
	}
	return made
}

func main() {
	flag.Parse()
	files := http.FileServer(http.Dir(*folder))
	server := &http.Server{
		TLSConfig:    config(),
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
		Handler: http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
			if request.Method != http.MethodPut {
				files.ServeHTTP(writer, request)
				return
			}
			io.Copy(io.Discard, request.Body)
			writer.WriteHeader(http.StatusCreated)
		}),
	}
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	fmt.Println(listener.Addr())
	log.Fatal(server.ServeTLS(listener, "", ""))
}
