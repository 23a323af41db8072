// Command millrace-s3 is the plugin with the S3 sink: records of each topic
// partition, in offset order, in objects of JSON lines or Parquet.
//
// Objects have names made of topic, partition and first offset, and are written
// only if they do not exist, so that whatever is killed, every record is in
// exactly one object.
package main

import (
	"github.com/millrace-io/millrace/plugins/sdk"
	"github.com/millrace-io/millrace/plugins/serve"
)

func main() { serve.Main(plugin()) }

func plugin() sdk.Plugin {
	return sdk.Plugin{Version: "0.1.0", Connectors: []sdk.Connector{{
		Class:   "io.confluent.connect.s3.S3SinkConnector",
		Aliases: []string{"s3", "S3Sink"},
		Doc:     "Writes topics to objects of an S3 bucket, each record exactly once.",
		Sink:    func() sdk.Sink { return &sink{} },
	}}}
}
