from actqkv_cli.worker.server import main

if __name__ == "__main__":
    main()
