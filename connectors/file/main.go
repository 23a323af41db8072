// Command millrace-file is the plugin with a source that reads lines of a file
// and a sink that appends lines to one. Both are written to be read: each shows
// an author the whole contract in about a hundred lines.
package main

import (
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/serve"
)

func main() { serve.Main(plugin()) }

func plugin() sdk.Plugin {
	return sdk.Plugin{Version: "0.1.0", Connectors: []sdk.Connector{
		{
			Class: "org.apache.kafka.connect.file.FileStreamSourceConnector", Aliases: []string{"file-source", "FileStreamSource"},
			Doc: "Reads the lines of a file, and goes on as it grows.", Source: func() sdk.Source { return &source{} },
		},
		{
			Class: "org.apache.kafka.connect.file.FileStreamSinkConnector", Aliases: []string{"file-sink", "FileStreamSink"},
			Doc: "Appends each record's value to a file, one a line.", Sink: func() sdk.Sink { return &sink{} },
		},
	}}
}
