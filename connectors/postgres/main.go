// Command millrace-postgres captures the changes of a Postgres database: first
// the rows that exist, then every change, in Debezium's format. README.md beside
// this file is its manual.
package main

import (
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/serve"
)

func main() {
	serve.Main(plugin())
}

// plugin is what the binary offers.
func plugin() sdk.Plugin {
	return sdk.Plugin{
		Version: version,
		Connectors: []sdk.Connector{{
			Class:   "io.debezium.connector.postgresql.PostgresConnector",
			Aliases: []string{"postgres"},
			Doc:     "Captures the changes of a Postgres database by logical replication.",
			Source:  newSource,
		}},
	}
}
